"""No request is larger than anything that the page could send."""

from typing import Any

Message = dict[str, Any]

LARGEST = 4_000_000
"""Bytes of a request's body: a prompt that is far too long still gets its message from the page."""


class Bounded:
    """An ASGI app in front of another one, which answers 413 to larger requests without reading them."""

    def __init__(self, app: Any, largest: int = LARGEST) -> None:
        self.app, self.largest = app, largest

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.largest:
            return await self._refuse(send)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.largest:  # sent in chunks, without a length
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, send: Any) -> None:
        text = f"this request is too large: expected at most {self.largest:,} bytes".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": text})
