"""Models trained on the pictures of attacks, and what attacks then still do."""
