r"""What a trained network reveals of the rows it was trained on, how noise bounds it, and whether the bound is true.

*Setting.* A training run is differentially private where its outcome would be nearly as likely had any one row been left out. To make it
so, each row's gradient is clipped, noise is added to every sum of a batch, and an accountant says how much all steps together reveal. The
accountant predicts; an attacker who tries to tell who was in the data measures. Here the two are set against each other.

*Notation.* A mechanism is :math:`(\varepsilon, \delta)`-private if :math:`P(S) \le e^{\varepsilon} Q(S) + \delta` for all events
:math:`S` and the laws :math:`P, Q` of its outcome on any two neighbouring data sets: with a row more or fewer, or with a row replaced. A
row's gradient is clipped to norm :math:`C`; the noise on a sum has standard deviation :math:`\sigma C`; a row is in a batch with chance
:math:`q`; there are :math:`T` steps. The privacy loss is :math:`\ln(dP/dQ)` under :math:`P`; the Rényi divergence of order :math:`\alpha`
is the logarithm of its exponential moment of order :math:`\alpha - 1`, over that order.

*What is known.* Without sampling, Gaussian steps compose exactly, and the curve of :math:`\delta` over :math:`\varepsilon` has a closed
form with :math:`\mu = \sqrt{T}/\sigma`. Sampling amplifies privacy by about :math:`q`, if batches are truly drawn anew at each step;
shuffled epochs and batches of fixed size need other accounts. Rényi divergences add over steps and lose some tightness in the end;
distributions of the privacy loss, convolved numerically, lose none that matters. The central limit approximation errs on the unsafe side.
Where only running sums of gradients are needed, noise that is correlated over steps and cancels in part reaches an error of
:math:`\frac{1}{\pi}\ln n` where independent noise has :math:`\sqrt{n}`. No attack can beat :math:`\mathrm{TPR} \le e^{\varepsilon}
\mathrm{FPR} + \delta`, and rows unlike all others, such as mislabelled ones, are the easiest to recognize.

*What is open.* The account supposes that every intermediate step is published; what the last one alone reveals is known for convex
problems at best. Audits in a single run stay far below the stated :math:`\varepsilon`, and nobody can say how much of that distance is the
attacker's weakness and how much slack in the account. What privacy costs in accuracy, and whether the rare rows that generalization may
need to memorize can be protected at all, is not settled.
"""
