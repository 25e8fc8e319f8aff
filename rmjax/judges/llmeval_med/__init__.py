"""LLMEval-Med (arXiv 2506.04078): answers to medical questions, judged by checklists, compared with people, refined."""
