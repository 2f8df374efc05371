// node lib/client.js HOST:PORT NAMESPACE TASK_QUEUE FOREIGN_QUEUE: runs every program once, and prints
// what each came to as one JSON object. A program's workflow has its name as its id.
import {
  ApplicationFailure,
  Client,
  Connection,
  WorkflowExecutionAlreadyStartedError,
  WorkflowFailedError,
  WorkflowHandle,
  WorkflowUpdateFailedError,
} from '@temporalio/client';
import * as workflows from './workflows';

const [address, namespace, taskQueue, foreignQueue] = process.argv.slice(2);
const KEYWORD = 2;

/** The type and message at the bottom of a failure. */
function root(error: unknown): string {
  let found = error as Error;
  while (found.cause instanceof Error) found = found.cause;
  return found instanceof ApplicationFailure
    ? `${found.type}: ${found.message}`
    : `${found.name}: ${found.message}`;
}

async function eventually<T>(look: () => Promise<T | undefined>): Promise<T> {
  for (let tries = 0; tries < 200; tries++) {
    const seen = await look();
    if (seen !== undefined) return seen;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error('it did not come');
}

function programs(client: Client): Record<string, () => Promise<unknown>> {
  const at = (workflowId: string) => ({ taskQueue, workflowId });
  const run = client.workflow;
  return {
    greeting: () => run.execute(workflows.greeting, { ...at('greeting'), args: ['World'] }),
    retried: () => run.execute(workflows.retried, at('retried')),
    failing: async () => {
      try {
        return await run.execute(workflows.failing, at('failing'));
      } catch (error) {
        if (!(error instanceof WorkflowFailedError)) throw error;
        return root(error);
      }
    },
    twice: async () => {
      const handle = await run.start(workflows.basket, at('twice'));
      try {
        await run.start(workflows.basket, at('twice'));
        return 'started twice';
      } catch (error) {
        await handle.signal(workflows.add, 'end');
        await handle.result();
        return error instanceof WorkflowExecutionAlreadyStartedError ? 'refused' : root(error);
      }
    },
    basket: () => basket(run.start(workflows.basket, at('basket'))),
    family: () => run.execute(workflows.family, at('family')),
    countdown: () => run.execute(workflows.countdown, { ...at('countdown'), args: [3] }),
    nap: () => run.execute(workflows.nap, at('nap')),
    tagged: async () => {
      const word = `word-${Date.now()}`;
      const searchAttributes = { TsWord: ['before'] };
      await run.execute(workflows.tagged, { ...at('tagged'), args: [word], searchAttributes });
      return await eventually(async () => {
        for await (const found of run.list({ query: `TsWord = '${word}'` })) return found.workflowId;
        return undefined;
      });
    },
    patient: async () => {
      const handle = await run.start(workflows.patient, at('patient'));
      await eventually(async () => ((await handle.describe()).historyLength > 4 ? true : undefined));
      await handle.cancel();
      try {
        return await handle.result();
      } catch (error) {
        return root(error);
      }
    },
    unknown: async () => {
      try {
        return await run.getHandle('nobody').describe();
      } catch (error) {
        return (error as Error).name;
      }
    },
    abroad: () => run.execute(workflows.abroad, { ...at('abroad'), args: [foreignQueue, 250] }),
    abroadFailing: () =>
      run.execute(workflows.abroad, { ...at('abroadFailing'), args: [foreignQueue, -1] }),
  };
}

async function basket(
  starting: Promise<WorkflowHandle<typeof workflows.basket>>
): Promise<unknown> {
  const handle = await starting;
  await handle.signal(workflows.add, 'apple');
  await handle.signal(workflows.add, 'pear');
  const held = await handle.query(workflows.items);
  let refused = 'not refused';
  try {
    await handle.executeUpdate(workflows.rename, { args: ['plum', 'prune'] });
  } catch (error) {
    if (!(error instanceof WorkflowUpdateFailedError)) throw error;
    refused = root(error);
  }
  const renamed = await handle.executeUpdate(workflows.rename, { args: ['pear', 'quince'] });
  await handle.signal(workflows.add, 'end');
  const result = await handle.result();
  return { held, refused, renamed, result, afterwards: await handle.query(workflows.items) };
}

async function main(): Promise<void> {
  const connection = await Connection.connect({ address });
  const client = new Client({ connection, namespace });
  await connection.operatorService.addSearchAttributes({
    namespace,
    searchAttributes: { TsWord: KEYWORD },
  });
  const told: Record<string, unknown> = {};
  for (const [name, program] of Object.entries(programs(client))) {
    try {
      told[name] = await program();
    } catch (error) {
      told[name] = `unexpected: ${(error as Error).stack}`;
    }
  }
  console.log(JSON.stringify(told));
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
