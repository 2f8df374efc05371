import perdure
from perdure import activity, workflow


@activity
async def greet(name: str) -> str:
    print(f"greeting {name}")
    return f"Hello, {name}!"


@workflow
async def hello(name: str) -> str:
    return await greet(name)


if __name__ == "__main__":
    print(perdure.execute(hello, "Ada", target="sqlite:///hello.db", id="hello-ada"))
