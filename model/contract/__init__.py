"""What training and serving share: stages, events, vocabulary, features, the reducer and its bytes, the bundle."""
