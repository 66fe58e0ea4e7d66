"""Fair shares: whose idle block goes when room is needed, and how much of the pool is whose.

A namespace with a share has an account of its own; all others share account 0. What an account
keeps idle is counted; the choice of the account comes before the policy's choice of the block:

    reserved    idle blocks of the account that nobody else's need takes away
    maximum     idle blocks beyond it go as soon as they become idle
    the victim  the account that keeps most above its reserve

Blocks that running requests hold are no part of this: they come back. Without shares there is one
account and nothing to choose. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kveik.cache.policy import IdleQueues
from kveik.cache.prefix import PrefixTree
from kveik.errors import ConfigError

MAX_ACCOUNTS = 255


@dataclass(frozen=True, slots=True)
class Share:
    """Of one namespace, in blocks of each group; maximum None: no limit."""

    reserved: int = 0
    maximum: int | None = None


class Shares:
    """See the module."""

    def __init__(self, tree: PrefixTree, idle: Sequence[IdleQueues], num_blocks: int) -> None:
        self._tree, self._idle, self._num_blocks = tree, idle, num_blocks
        self._shares: list[Share] = [Share()]  # by account
        self.active = False

    def set(self, shares: Mapping[str, Share]) -> None:
        """These namespaces have these shares from now on, all others none.

        Takes time in proportion to the pool. ConfigError, and nothing changed, when the shares
        are no shares of this pool."""
        self._check(shares)
        tree = self._tree
        tree.accounts = {name: number for number, name in enumerate(shares, 1)}
        self._shares = [Share(), *shares.values()]
        self.active = bool(shares)
        for node in tree.nodes():
            identity = tree.identities.get(tree.root_of(node))
            tree.account[node] = tree.accounts.get(identity.namespace, 0) if identity else 0
        for idle in self._idle:
            idle.set_accounts(len(self._shares))

    def set_bytes(self, shares: Mapping[str, tuple[int, int | None]], per_block: int) -> None:
        """The same in bytes, of which a block of all groups has so many."""
        size = max(per_block, 1)
        self.set(
            {
                name: Share(-(-reserved // size), None if most is None else most // size)
                for name, (reserved, most) in shares.items()
            }
        )

    def _check(self, shares: Mapping[str, Share]) -> None:
        if len(shares) > MAX_ACCOUNTS:
            raise ConfigError(f"shares: {len(shares)} namespaces, at most {MAX_ACCOUNTS} can be")
        reserved = sum(share.reserved for share in shares.values())
        if reserved > self._num_blocks * 9 // 10:
            raise ConfigError(
                f"shares: {reserved} blocks are reserved of {self._num_blocks}; at most nine "
                "tenths of the pool can be: reserve less or give the engine more --kv-memory"
            )
        for share in shares.values():
            if share.reserved < 0 or (
                share.maximum is not None and share.maximum < max(share.reserved, 1)
            ):
                raise ConfigError(f"shares: {share} has a maximum below what it reserves")

    def of(self, namespace: str) -> Share:
        return self._shares[self.account(namespace)]

    def usage(self, namespace: str, per_block: int) -> tuple[int, int, int, int | None]:
        """See CacheManager.usage."""
        share, account = self.of(namespace), self.account(namespace)
        idle = self._idle[0].evictable_of[account] * per_block if account else 0
        tree = self._tree
        public = sum(tree.blocks_before(each) for each in tree.identities_of(namespace))
        most = None if share.maximum is None else share.maximum * per_block
        return idle, idle + public * per_block, share.reserved * per_block, most

    def account(self, namespace: str) -> int:
        return self._tree.accounts.get(namespace, 0)

    def others_reserve(self, namespace: str) -> int:
        """Blocks that a request of this namespace can never have."""
        own = self.account(namespace)
        return sum(share.reserved for k, share in enumerate(self._shares) if k != own)

    def evictable(self, group: int, account: int) -> int:
        """Idle blocks that this account's need may take."""
        idle = self._idle[group]
        if not self.active:
            return idle.evictable
        kept = sum(
            min(idle.evictable_of[other], share.reserved)
            for other, share in enumerate(self._shares)
            if other != account
        )
        return idle.evictable - kept

    def victim(self, group: int, account: int) -> int:
        """Whose block goes for this account's need."""
        if not self.active:
            return 0
        counts, best, most = self._idle[group].evictable_of, account, 0
        for other, share in enumerate(self._shares):
            above = counts[other] - share.reserved
            if above > most or (above == most and other == account):
                best, most = other, above
        return best

    def above_maximum(self) -> list[tuple[int, int, int]]:
        """(group, account, idle blocks beyond the account's maximum), where there are any."""
        return [
            (group, account, idle.evictable_of[account] - share.maximum)
            for account, share in enumerate(self._shares)
            if share.maximum is not None
            for group, idle in enumerate(self._idle)
            if idle.evictable_of[account] > share.maximum
        ]
