"""Dirichlet-process Gaussian mixtures over very many vectors of moderate width."""
