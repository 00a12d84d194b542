"""Gaussian processes: hyper-parameters by marginal likelihood, with interchangeable objectives and posteriors."""
