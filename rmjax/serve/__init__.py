"""The reward server: requests in the dialects of trainers and servers → token sequences → forests → replies (docs/serving.md)."""
