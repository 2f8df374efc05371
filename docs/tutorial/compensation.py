import perdure
from perdure import ActivityError, ApplicationError, WorkflowFailedError, activity, workflow


@activity
async def charge(order_id: str) -> str:
    print(f"charge for {order_id}")
    return f"payment-of-{order_id}"


@activity
async def refund(payment: str) -> None:
    print(f"refund {payment}")


@activity
async def ship(order_id: str, address: str) -> str:
    if address == "nowhere":
        raise ApplicationError("no such address", type="AddressUnknown", non_retryable=True)
    return f"parcel-of-{order_id}"


@workflow
async def checkout(order_id: str, address: str) -> str:
    payment = await charge(order_id)
    try:
        return await ship(order_id, address)
    except ActivityError:
        await refund(payment)
        raise


if __name__ == "__main__":
    try:
        perdure.execute(checkout, "order-43", "nowhere", target="memory://", id="order-43")
    except WorkflowFailedError as error:
        print(error)
        print(repr(error.cause.cause))
