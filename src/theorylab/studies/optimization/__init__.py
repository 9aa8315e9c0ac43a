r"""What first-order theory promises, and what it cannot explain.

*Setting.* A loss :math:`f` of parameters :math:`\theta` is decreased by steps along its gradient, :math:`\theta_{t+1} = \theta_t - \eta
\nabla f(\theta_t)`, perhaps with memory of earlier steps (momentum) or with a gradient of a few rows only (stochastic gradient descent).
Theory asks after how many steps the loss is within a given distance of its minimum, for the worst function of a class.

*Notation.* :math:`L`-smooth: the gradient changes by at most :math:`L` times the change of the parameters; :math:`\mu` is the constant of
strong convexity, or of the Polyak-Łojasiewicz inequality :math:`\tfrac12\|\nabla f\|^2 \ge \mu (f - f^*)`; :math:`\kappa = L/\mu`;
:math:`\eta` the step size, :math:`\beta` the momentum; :math:`\lambda_1` the largest eigenvalue of the Hessian, called sharpness.

*What is known.* For convex classes almost everything: for gradient descent, subgradient descent and the optimized gradient method the
worst case is known exactly, with the function that attains it, and no method that moves within the span of the gradients it saw is faster
than order :math:`1/t^2`. Under the Polyak-Łojasiewicz inequality convergence is linear without convexity. On quadratics momentum turns
:math:`\kappa` into :math:`\sqrt\kappa`, but the same tuning may cycle on functions that are merely smooth and strongly convex. Noise of a
fixed size keeps the iterate in a stationary law of known variance; strict saddles are left in a time logarithmic in the distance from
them; a finite step follows, to second order, the gradient flow of a loss with a penalty on :math:`\|\nabla f\|^2`. Against an adversary
who chooses the losses, regret of order :math:`\sqrt T` is the best possible.

*What is open.* None of this describes how networks train. With full batches the sharpness grows until :math:`\eta\lambda_1 = 2`, where
the descent lemma says nothing, and training goes on there, at the edge of stability. Why sharpness grows at all, why the loss still falls
in the long run, and how fast, is understood in models of a few parameters and for some architectures near their minima, not in general.
The study of the edge of stability measures these facts on a network and real data; the others are what the theory does prove.
"""
