"""Linear algebra that knows no models: polar factors and the maps they make, products, regressions."""
