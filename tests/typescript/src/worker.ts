// node lib/worker.js HOST:PORT NAMESPACE TASK_QUEUE: runs until it is told to stop.
import { DefaultLogger, NativeConnection, Runtime, Worker } from '@temporalio/worker';
import * as activities from './activities';

async function main(address: string, namespace: string, taskQueue: string): Promise<void> {
  Runtime.install({ logger: new DefaultLogger('ERROR') });
  const connection = await NativeConnection.connect({ address });
  const worker = await Worker.create({
    connection,
    namespace,
    taskQueue,
    activities,
    workflowsPath: require.resolve('./workflows'),
    shutdownGraceTime: '1s',
  });
  console.log('ready');
  await worker.run();
  await connection.close();
}

const [address, namespace, taskQueue] = process.argv.slice(2);
main(address, namespace, taskQueue).catch((error) => {
  console.error(error);
  process.exit(1);
});
