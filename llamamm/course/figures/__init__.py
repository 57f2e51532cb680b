"""Pictures of the lessons, a module for each lesson and a function for each picture."""
