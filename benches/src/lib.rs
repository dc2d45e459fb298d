//! Nothing: this package exists for its benches. How to run them, and what they have shown, stands in `README.md`.
