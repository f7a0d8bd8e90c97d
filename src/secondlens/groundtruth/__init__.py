"""Networks whose neurons are known, and what methods that explain neurons say of them."""
