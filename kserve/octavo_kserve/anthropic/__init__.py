"""Anthropic's Messages API: another way to ask for a chat's next message.

Translates both ways; generation is the chat route's.
"""

from octavo_kserve.anthropic.routes import create_messages_router

__all__ = ["create_messages_router"]
