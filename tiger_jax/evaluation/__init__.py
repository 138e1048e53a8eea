"""Ranking metrics, intervals and baselines behind one evaluator."""
