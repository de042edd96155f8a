"""Where does transport win? Cells of a study, and the tables made of them."""
