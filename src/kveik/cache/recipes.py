"""Which recipes contain what of the tree, so that what dies takes them along.

A recipe lies in a tree of its own, and yet its keys and values depend on the blocks of the modules
and runs that it was computed behind, as those below a node depend on the node. Known are the paths
that were read or written for it: when a node of one dies, or is evicted with a deadline that could
then no longer be kept, the recipe *falls*. Eviction alone does it no harm. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence


class Recipes:
    """A recipe is named by the root of its tree, a path by its last node. fallen: recipes that are
    to be put out of reach before anybody looks for one."""

    def __init__(self) -> None:
        self.fallen: set[int] = set()
        self._paths: dict[int, tuple[int, ...]] = {}
        self._through: dict[int, set[int]] = {}  # node -> paths
        self._recipes: dict[int, set[int]] = {}  # path -> recipes
        self._contents: dict[int, set[int]] = {}  # recipe -> paths

    def link(self, recipe: int, path: Sequence[int]) -> None:
        """The recipe was computed behind these nodes, from the root on."""
        last = path[-1]
        if last not in self._paths:
            self._paths[last] = tuple(path)
            self._recipes[last] = set()
            for node in path:
                self._through.setdefault(node, set()).add(last)
        self._recipes[last].add(recipe)
        self._contents.setdefault(recipe, set()).add(last)

    def containing(self, node: int) -> set[int]:
        """The recipes that contain this node."""
        found: set[int] = set()
        for last in self._through.get(node, ()):
            found |= self._recipes[last]
        return found

    def removed(self, node: int, *, died: bool) -> None:
        """The node is gone from the tree, and its number may be used again."""
        if died:
            self.fallen |= self.containing(node)
        for last in tuple(self._through.get(node, ())):
            self._shorten(last, node)
        self.fallen.discard(node)
        for last in self._contents.pop(node, ()):
            self._recipes[last].discard(node)
            if not self._recipes[last]:
                self._forget(last)

    def _shorten(self, last: int, node: int) -> None:
        """Of this path, what stands above the node is still there."""
        path, recipes = self._paths[last], tuple(self._recipes[last])
        self._forget(last)
        above = path[: path.index(node)]
        if above:
            for recipe in recipes:
                self.link(recipe, above)

    def _forget(self, last: int) -> None:
        for node in self._paths.pop(last):
            through = self._through[node]
            through.discard(last)
            if not through:
                del self._through[node]
        for recipe in self._recipes.pop(last):
            self._contents[recipe].discard(last)
            if not self._contents[recipe]:
                del self._contents[recipe]

    def known(self) -> tuple[set[int], set[int]]:
        """(nodes, recipes) that are spoken of, for the audit; every path is some recipe's."""
        assert all(self._recipes.values()), "a path is remembered for no recipe"
        return set(self._through), {*self._contents, *self.fallen}
