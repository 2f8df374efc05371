import {
  ActivityFailure,
  ApplicationFailure,
  CancellationScope,
  ChildWorkflowFailure,
  condition,
  continueAsNew,
  defineQuery,
  defineSignal,
  defineUpdate,
  executeChild,
  isCancellation,
  proxyActivities,
  setHandler,
  sleep,
  upsertSearchAttributes,
} from '@temporalio/workflow';
import type * as activities from './activities';

const { greet, unsteady, broken } = proxyActivities<typeof activities>({
  startToCloseTimeout: '30s',
  retry: { initialInterval: '10ms', backoffCoefficient: 1 },
});

export async function greeting(name: string): Promise<string> {
  return await greet(name);
}

export async function retried(): Promise<number> {
  return await unsteady();
}

export async function failing(): Promise<void> {
  await broken('the lamp');
}

export const add = defineSignal<[string]>('add');
export const items = defineQuery<string[]>('items');
export const rename = defineUpdate<string, [string, string]>('rename');

/** Collects what it is sent until it is told `end`. */
export async function basket(): Promise<string[]> {
  const held: string[] = [];
  let ended = false;
  setHandler(add, (item) => {
    if (item === 'end') ended = true;
    else held.push(item);
  });
  setHandler(items, () => held);
  setHandler(
    rename,
    async (from, to) => {
      held[held.indexOf(from)] = await greet(to);
      return held.join(', ');
    },
    {
      validator: (from, _to) => {
        if (!held.includes(from)) throw new Error(`there is no ${from}`);
      },
    }
  );
  await condition(() => ended);
  return held;
}

/** One child succeeds, one fails. */
export async function family(): Promise<string[]> {
  const told = [await executeChild(greeting, { args: ['child'] })];
  try {
    await executeChild(failing);
  } catch (error) {
    if (!(error instanceof ChildWorkflowFailure)) throw error;
    const cause = error.cause;
    if (!(cause instanceof ActivityFailure)) throw error;
    const root = cause.cause;
    if (!(root instanceof ApplicationFailure)) throw error;
    told.push(`${root.type}: ${root.message}`);
  }
  return told;
}

/** Goes on as a new run until it has counted down. */
export async function countdown(left: number, runs = 1): Promise<number> {
  if (left > 0) await continueAsNew<typeof countdown>(left - 1, runs + 1);
  return runs;
}

/** A timer that rings, and a wait that is not worth it. */
export async function nap(): Promise<boolean> {
  await sleep('50ms');
  return await condition(() => false, '50ms');
}

export async function tagged(word: string): Promise<string> {
  upsertSearchAttributes({ TsWord: [word] });
  return word;
}

/** Waits for long, and cleans up when it is cancelled. */
export async function patient(): Promise<void> {
  try {
    await sleep('1 hour');
  } catch (error) {
    if (isCancellation(error)) await CancellationScope.nonCancellable(() => greet('nobody'));
    throw error;
  }
}

/** Calls an activity of a worker in another language. */
export async function abroad(queue: string, cents: number): Promise<unknown> {
  const foreign = proxyActivities<{ price(order: { cents: number }): Promise<unknown> }>({
    startToCloseTimeout: '30s',
    taskQueue: queue,
    retry: { maximumAttempts: 1 },
  });
  try {
    return await foreign.price({ cents });
  } catch (error) {
    if (!(error instanceof ActivityFailure)) throw error;
    if (!(error.cause instanceof ApplicationFailure)) throw error;
    return `${error.cause.type}: ${error.cause.message}`;
  }
}
