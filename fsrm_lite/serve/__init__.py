"""A loaded model over HTTP, in the shapes that other rerankers and reasoners have."""
