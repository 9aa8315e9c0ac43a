r"""Why networks that can fit anything still generalize, and what can be certified.

*Setting.* A predictor is chosen by its error on :math:`n` rows drawn independently from a law, and is judged by its error on that law.
The difference is the generalization gap. Classical theory bounds it for all predictors of a class at once, by how rich the class is.

*Notation.* :math:`\hat e` is the error on the rows, :math:`e` the error on the law, :math:`\delta` the probability with which a bound may
be wrong; :math:`\mathrm{kl}(q\|p)` is the relative entropy of coins with biases :math:`q` and :math:`p`, and :math:`\mathrm{KL}(Q\|P)`
that of a posterior :math:`Q` over predictors and a prior :math:`P` fixed before the rows were seen; :math:`p/n` is the number of
parameters a row.

*What is known.* The same networks that generalize fit random labels without error, so that no bound by the richness of the class alone
can explain them, and there are settings in which every bound that holds uniformly over what training may return is vacuous although the
test error is small. What remains are bounds that look at the predictor that was found: PAC-Bayes and compression bounds certify networks
with numbers below one half, on data of which a part pays for the prior. Fitting exactly need not hurt: the risk of the minimum-norm
interpolator is known in closed form for Gaussian rows, it peaks where the rows are just fitted and falls again beyond (double descent),
and it tends to that of the best predictor where the covariance has a long flat tail (benign overfitting). In the limit of infinite width
training is regression with a fixed kernel, for which all of this can be computed.

*What is open.* Certificates are still far from the test error, and say little about why one network generalizes better than another.
Measures of complexity that rank trained networks rightly when one thing is varied fail when another is. Rich training, in which features
change, has no theory of the kind that the kernel limit has. The studies report what each bound, closed form and measure is worth on data:
every number is labelled a bound, with its probability and assumptions, or a mere measure.
"""
