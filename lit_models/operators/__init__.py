"""Neural operators: maps between fields on a grid."""
