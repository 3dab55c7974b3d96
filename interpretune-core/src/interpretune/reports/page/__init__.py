"""The page about a question: one HTML file, made from stores alone."""
