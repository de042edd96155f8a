"""Drawing of small pictures, for the embedded tasks and for the pictures that the zoo was trained on."""
