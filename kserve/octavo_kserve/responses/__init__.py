"""OpenAI's Responses API, as far as it needs no memory: another way to ask for a chat's next message.

Translates both ways; generation is the chat route's.
"""

from octavo_kserve.responses.routes import create_responses_router

__all__ = ["create_responses_router"]
