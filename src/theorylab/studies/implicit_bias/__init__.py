r"""Which of the many interpolating solutions training picks, and why.

*Setting.* With more parameters than rows the training loss has many minima, and they differ on new data. Which of them is reached is
decided by the algorithm, its initialization and the parametrization, not by the loss. That preference is called implicit bias or implicit
regularization: no term of the loss asks for it.

*Notation.* A deep linear network computes :math:`W_N \cdots W_1 x`; its layers are balanced where :math:`W_{j+1}^\top W_{j+1} = W_j
W_j^\top`. The margin of a linear classifier :math:`w` in the norm :math:`\|\cdot\|` is :math:`\min_i y_i w^\top x_i / \|w\|`. A mirror
map :math:`\nabla\psi` turns gradient descent into descent in the geometry of :math:`\psi`; :math:`\alpha` scales the initialization or
the output.

*What is known.* Gradient descent keeps what a symmetry of the parametrization conserves, up to terms of second order in the step. From
zero it finds the solution of least Euclidean norm of a linear system; mirror descent finds that of least :math:`\psi`. On separable data
the weights of a linear classifier grow without end, and their direction tends to the largest margin in the norm in which the method takes
its steepest step, though with steps of a fixed size only as fast as :math:`1/\ln t`. A product parametrization :math:`u\odot u - v\odot
v` behaves as mirror descent with a hyperbolic entropy, which goes from the :math:`\ell_2` to the :math:`\ell_1` norm as the initialization
shrinks. Deep matrix and tensor factorizations prefer low rank, and no norm explains it: there are problems on which training drives all
norms to infinity and the rank down. With a large scale of the output a network stays in the neighbourhood of its initialization, where it
is a kernel machine (lazy); with a small one it learns features (rich).

*What is open.* Beyond linear, diagonal and homogeneous models the bias of training has no description as the minimum of anything. How
noise, large steps and normalization change it is known for two-layer models at best. How slowly the limits are approached matters too: at
the end of any real training the direction is still far from the limit that theory describes.
"""
