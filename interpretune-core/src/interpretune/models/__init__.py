"""Loading models and tokenizers, and what is known of their tokens."""
