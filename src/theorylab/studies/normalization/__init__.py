r"""What normalization layers do to optimization.

*Setting.* BatchNorm, LayerNorm, GroupNorm and RMSNorm divide activations by their size. Weights that feed such a layer can be multiplied
by a constant without any change of the output: the loss is scale-invariant in them. Where a normalization follows every linear map but
the last, all weights before the last are of this kind; in a pre-norm transformer, which normalizes a sum of what many layers wrote, no
single matrix is. Weight decay, which shrinks such weights, regularizes nothing and changes the speed of learning instead.

*Notation.* :math:`\theta` is a scale-invariant tensor of weights, :math:`L(c\theta) = L(\theta)` for :math:`c > 0`; :math:`\eta` is the
step size, :math:`\lambda` the weight decay, :math:`\gamma` the momentum; :math:`\eta/\|\theta\|^2` is the effective step size, that of
the direction :math:`\theta/\|\theta\|`; :math:`\eta\lambda` the intrinsic one.

*What is known.* By Euler's theorem gradients are orthogonal to the weights and shrink as the weights grow, :math:`\nabla L(c\theta) =
\nabla L(\theta)/c`. So gradient descent without decay only makes norms grow, and any step size, however large, becomes small by itself.
With decay :math:`\lambda` and step :math:`\eta` training is exactly the same as without decay and with a step that grows exponentially.
Growth by gradients and shrinking by decay balance after about :math:`1/(\eta\lambda)` steps: then each step turns the weights by the
angle :math:`\sqrt{2\eta\lambda/(1+\gamma)}`, whatever the initialization was. At initialization normalization may do harm: in a deep
fully connected ReLU network with BatchNorm squared gradients grow by a factor :math:`\pi/(\pi-1)` a layer. In transformers the place of
the normalization decides whether the gradients of the last layers shrink as depth grows.

*What is open.* Why normalized networks generalize as they do, and whether the noise of batch statistics matters beyond its effect on
speed. Equilibrium is a law of averages: how the loss behaves there, and why a drop of the step size helps so much, is understood by
analogy with a stochastic differential equation whose mixing is far faster than theory can explain.
"""
