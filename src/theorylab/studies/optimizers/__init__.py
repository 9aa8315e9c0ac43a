r"""The norms that optimizers descend in, the edges at which they train, and how their settings change with batch and width.

*Setting.* Networks are seldom trained by plain gradient descent. Adam rescales each coordinate, Shampoo, SOAP and Muon rescale the
singular values of each matrix, SAM takes the gradient at a point uphill. Each has settings that must be changed with the size of batches
and of the network, and rules of thumb say how. Which of them are theorems, and where do they stop?

*Notation.* :math:`G` is the gradient of a matrix of weights, with singular vectors :math:`U, V`; :math:`\eta` the step size, :math:`B`
the batch, :math:`\beta_1, \beta_2` Adam's rates, :math:`\lambda_1` the largest eigenvalue of the Hessian :math:`H`; :math:`\Sigma` the
covariance of the gradients of single rows; :math:`k` the factor by which the batch grows.

*What is known.* Without their averages sign descent and Adam are steepest descent in the :math:`\ell_\infty` norm; Shampoo, SOAP and Muon
in the spectral norm, where the step is :math:`UV^\top`. Adam need not converge even on a convex problem in one dimension, and weight
decay that is decoupled confines its limit to a box. Like gradient descent, the others train at an edge of stability, each at its own:
preconditioned sharpness near :math:`(2+2\beta_1)/((1-\beta_1)\eta)` for Adam, a threshold that depends on the gradient's norm for SAM.
While the noise of minibatches rules, the batch may grow by :math:`k` if the step grows by :math:`k` (SGD) or :math:`\sqrt k` (Adam), and
the same law of motion is kept; the gradient noise scale says up to which batch. And if the network is parametrized so that every layer's
features change by an amount that does not depend on width, the best step for a narrow network is the best for a wide one.

*What is open.* Which optimizer is faster, and why, is decided by races and not by theorems, and nothing of that kind is claimed here.
Scaling rules are derived for stochastic differential equations which no real run follows closely for long; how they break is measured,
not predicted. Transfer across width is proved in the limit, for a fixed number of steps; across depth, data and training time it is a
rule of thumb again.
"""
