"""Files of weights: reading them strictly, finding and comparing them."""
