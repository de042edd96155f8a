"""The embedded zoo: recipes, weights and measurements of small CLIP models; `bico.models.zoo` reads them."""
