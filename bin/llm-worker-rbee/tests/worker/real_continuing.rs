//! A real model's reply goes on elsewhere.
