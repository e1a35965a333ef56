"""Routes for models that make vectors: OpenAI's embeddings, and scores and reranking as vLLM and KServe have them.

A model that generates refuses them.
"""

from octavo_kserve.embeddings.routes import create_embeddings_router, create_rerank_router, create_score_router

__all__ = ["create_embeddings_router", "create_rerank_router", "create_score_router"]
