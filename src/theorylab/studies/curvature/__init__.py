r"""Exact curvature: what its instruments must satisfy, and what the curvature of a network does not tell.

*Setting.* The second derivative of a loss in a million parameters cannot be written down, yet its product with a vector costs about as
much as two gradients. From products alone one gets extreme eigenvalues, the density of the spectrum, traces and logarithms of
determinants, each with an error that can be known.

*Notation.* :math:`H` is the Hessian of the mean loss, :math:`G = \frac1n\sum_i J_i^\top (\nabla^2_z \ell_i) J_i` the generalized
Gauss-Newton matrix, :math:`J_i` the Jacobian of the outputs of row :math:`i`; :math:`F` the Fisher information, an expectation over
labels drawn from the model; :math:`\Theta = J J^\top` the tangent kernel.

*What is known.* :math:`H = G + R`, and the rest :math:`R` vanishes where the outputs are linear in the parameters or the rows are fitted.
For the losses of exponential families :math:`G` is the Fisher information; the empirical Fisher matrix, with the observed labels in place
of drawn ones, is another matrix. Lanczos' method finds extreme eigenvalues to the accuracy that its residuals tell, provided that its
vectors are kept orthogonal, and integrates polynomials of the spectrum exactly up to a degree known in advance. Random vectors estimate
traces without bias, and how well depends on the method and on the spectrum.

*What is open.* What curvature has to do with generalization. A ReLU network can be rescaled, without any change of what it computes, so
that the Hessian's trace and largest eigenvalue are as large as one likes. So no flatness that depends on the parametrization can explain
anything by itself; those that do not are measures of which some correlate with test error in some experiments. The studies here check the
instruments on which every other topic stands.
"""
