"""The OpenAI API as routes over the models that are served: chats, completions, models, tokens.

Knows no server: whoever makes one mounts these routers, under whatever prefix. They answer their own errors.
"""

from octavo_kserve.openai.routes import create_router, create_tokenize_router

__all__ = ["create_router", "create_tokenize_router"]
