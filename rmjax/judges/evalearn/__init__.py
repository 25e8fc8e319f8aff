"""EvaLearn (arXiv 2506.02672): does a model get better over a sequence of problems that are alike, by what it is told of them?"""
