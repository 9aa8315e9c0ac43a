r"""Which training rows a prediction owes to, and how to tell whether an answer is right.

*Setting.* A model is trained on n rows, and one asks what a prediction would have been without one of them, or with another subset. The
honest answer is to train again. Everything else is an approximation of it: leave-one-out formulas, influence functions with one or
another curvature, sums of gradient products along training, features projected at random, and linear models fitted to many retrainings.

*Notation.* The objective is :math:`L(\theta) = \frac1n\sum_i w_i\,\ell_i(\theta) + \frac\lambda2\|\theta\|^2` at weights :math:`w_i =
1`; :math:`H` is its Hessian, :math:`G` the Gauss-Newton matrix. A score :math:`\tau_{ij}` says what row i does to target j; it is
positive where *adding* the row raises the target. The linear datamodeling score (LDS) is the rank correlation, over random subsets S of
the rows, of :math:`\sum_{i\in S}\tau_{ij}` with the target measured on networks that were trained on S.

*What is known.* For least squares, leaving a row out has a closed form. For a strictly convex objective the derivative in a row's
weight is :math:`-\frac1n H^{-1}\nabla\ell_i`, exactly, at the optimum only; removing the row is a finite step, which the derivative
understates by the row's leverage. In a network the Hessian has negative eigenvalues and training does not end at a stationary point:
with the Gauss-Newton matrix the same formula answers another question, that of a proximal problem around the parameters at hand, and
answers it exactly. Kronecker factors make it cheap; their eigenvalues can be corrected, which never hurts in Frobenius norm. The best
linear prediction from membership alone is limited by the interactions between rows, which are the Fourier weights of degree two and
more.

*What is open.* How well any of these predicts the retraining of large networks, where the ground truth is unaffordable and noisy: two
trainings on the same subset differ, and that noise sets a ceiling to every score. Why averaging over checkpoints helps as much as it
does, how to attribute what was learnt early in training, and what a good score of a group of rows is, are not settled.
"""
