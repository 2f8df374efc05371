from datetime import timedelta

import perdure
from perdure import ActivityError, ApplicationError, RetryPolicy, TimeoutError, activity, workflow


class CardDeclined(Exception):
    pass


@activity(
    start_to_close_timeout=timedelta(seconds=10),
    retry=RetryPolicy(
        initial_interval=timedelta(milliseconds=100),
        backoff_coefficient=2.0,
        maximum_attempts=5,
        non_retryable_error_types=[CardDeclined],
    ),
)
async def charge(card: str, cents: int) -> str:
    attempt = activity.info().attempt
    print(f"attempt {attempt} on {card}")
    if card == "stolen":
        raise CardDeclined("the bank said no")
    if attempt < 3:
        raise ConnectionError("the bank does not answer")
    return f"payment of {cents}"


@workflow
async def pay(card: str, cents: int) -> str:
    try:
        return await charge(card, cents)
    except ActivityError as error:
        match error.cause:
            case ApplicationError(type="CardDeclined"):
                return f"declined: {error.cause.message}"
            case TimeoutError():
                return "the bank is too slow"
        raise


if __name__ == "__main__":
    print(perdure.execute(pay, "good", 1999, target="memory://", id="a"))
    print(perdure.execute(pay, "stolen", 1999, target="memory://", id="b"))
