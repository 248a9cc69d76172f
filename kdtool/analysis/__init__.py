"""What was transferred: offline, in blocks, from features that lie on disk.

The mathematics takes features (n, d) and gives plain values; each analysis begins in one module:

    gram         the kernel transfer loss            moments, kernels, classes
    bounds       KDA's bounds beside the true gap    nystrom, clusters, projector, measures, lemma
    spectrum     eigenvalues, Nystrom errors         nystrom, projector
    landmarks    estimates over a training           nystrom, measures
    similarity   linear CKA                          centred
    rsa          representational similarity         centred
    predictions  agreement, KL, calibration
    correlation  class correlations of logits
    probe        a new classifier on a student

features reads two or more sides in blocks of the same samples. pairs and compared say whose features these are, spooled
keeps them, analyses runs everything over them, kept holds what came out, figures draws it. results and plots are the
report's.
"""
