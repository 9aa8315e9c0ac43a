r"""Why architecture matters before any training trick.

*Setting.* A convolution applies the same small linear map at every position. That is a linear map with few free numbers, which commutes
with shifts; a fully connected layer of the same size contains it, and can represent all that it can. So why does it matter? Because
training finds different functions, from fewer rows, and because a deep network must let signals through at all before it can learn.

*Notation.* An algorithm is equivariant under a group of transformations of the inputs if training on transformed rows gives the function
that gives the same answers on transformed inputs. :math:`\Theta` is the tangent kernel, CNTK that of a convolutional network of
infinitely many channels. Of a random network with weights of variance :math:`\sigma_w^2/n` and biases of variance :math:`\sigma_b^2`,
:math:`q_l` is the mean square of a unit's input in layer :math:`l`, :math:`c_l` the correlation of two inputs, and :math:`\chi_1 =
\sigma_w^2\, \mathbb{E}\, \phi'(\sqrt{q^*} z)^2` the factor by which squared gradients change from one layer to the next.

*What is known.* Gradient descent on a fully connected network is equivariant under rotations of the inputs, so it needs as many rows for
a task as for all its rotations together: there are tasks on which that is a number of order :math:`d^2` while a convolution needs a
constant number. With global pooling a convolutional network and its kernel do not see shifts. The singular values of a circular
convolution are those of small matrices, one for each frequency, and have little to do with the norm of the reshaped kernel. At
initialization the lengths, correlations and gradients of wide networks follow maps of one variable: there is a critical variance at which
signals travel without loss, and at it orthogonal weights, unlike Gaussian ones, keep all singular values of the product alike.

*What is open.* On natural images the advantage of convolutions, and how it fades with more data (vision transformers), is an empirical
fact without a theorem. Kernel limits of convolutional networks do worse than the trained networks, which learn features; what these
features owe to the architecture is not known. Signal propagation tells which networks can begin to train, and not what they come to.
"""
