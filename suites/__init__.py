"""The bundled capability checks. A package, so that its modules cannot meet a project's own."""
