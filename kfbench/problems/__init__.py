"""What is trained: data sets, models and likelihoods."""
