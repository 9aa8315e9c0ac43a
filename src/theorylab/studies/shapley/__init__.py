r"""How the worth of a whole is divided among its parts: the Shapley value of rows, features and players.

*Setting.* A game gives every coalition of n players a worth. The players may be rows of training data, and the worth the accuracy of a
model fitted on them; or features, and the worth what a model says when it sees these only. The question is what each player contributed,
when contributions depend on who else is there.

*Notation.* :math:`N` is the set of all players, :math:`v(S)` the worth of the coalition :math:`S` of s players, and :math:`\Delta_i v(S) =
v(S\cup i) - v(S)` a marginal contribution. A semivalue is a mean :math:`\phi_i = \sum_{S\not\ni i} p_s\,\Delta_i v(S)`; the Shapley value
has :math:`p_s = s!\,(n-1-s)!/n!`, the Banzhaf value :math:`p_s = 2^{1-n}`. The Möbius coefficients :math:`a_T`, or dividends, write the
game as :math:`v(S) = \sum_{T\subseteq S} a_T`.

*What is known.* One division only adds up to the worth of all, treats equals equally, gives nothing for nothing and is linear: Shapley's.
It is at the same time a mean over orders of arrival, an integral of the game's multilinear extension along the diagonal, and a weighted
least-squares fit of the game by a sum over players; without the weights that fit is Banzhaf's value. Exact values need :math:`2^n` worths
in general, but :math:`O(n\log n)` for a nearest-neighbour classifier and none beyond the means for a linear model of features. Sampling
errs as :math:`M^{-1/2}`. Independent noise in the worths harms the Banzhaf value least of all semivalues.

*What is open.* The axioms fix the division, not the game. Which worth a row of data should have, on which test set and for which learner,
is a choice that the values inherit, and whether features absent from a model are drawn independently of those present is another: the two
answers differ. No ranking of rows beats the others on every task, and what the noise of training does to a ranking depends on the sizes of
coalitions at which it is large.
"""
