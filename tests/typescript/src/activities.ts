import { ApplicationFailure, Context } from '@temporalio/activity';

export interface Parcel {
  id: string;
  grams: number;
  labels: string[];
}

export async function greet(name: string): Promise<string> {
  return `Hello, ${name}!`;
}

/** Fails until its third attempt. */
export async function unsteady(): Promise<number> {
  const { attempt } = Context.current().info;
  if (attempt < 3) throw new Error(`attempt ${attempt} failed`);
  return attempt;
}

export async function broken(what: string): Promise<void> {
  throw ApplicationFailure.nonRetryable(`${what} is broken`, 'Broken', { what });
}

export async function weigh(parcel: Parcel): Promise<Parcel> {
  if (parcel.grams < 0) throw ApplicationFailure.nonRetryable('less than nothing', 'BadWeight');
  return { ...parcel, grams: parcel.grams + 20, labels: [...parcel.labels, 'weighed'] };
}
