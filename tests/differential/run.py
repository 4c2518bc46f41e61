"""Runs a program step by step against a single etcd and against esp, and compares all answers.

esp's right answer is the single etcd's answer with every revision translated (mapping.py), or it is a listed
difference, predicted from the request. Revisions in requests are translated the other way. The single etcd is first
asked with the numbers that it gave itself. If its answer is another one, it is asked for the moment that the number
means on the shard concerned; then this was a listed difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.tokens import MARK
from tests.differential import programs as p
from tests.differential.clusters import Clusters, Failure, Outcome, ask, keep_alive, stream_range
from tests.differential.differences import Difference
from tests.differential.mapping import Mapping
from tests.differential.numbers import Number, Revisions, Seen
from tests.differential.watchers import Watchers

_RANGE = rpc_pb2.RangeRequest
COMPACTED = Failure(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE = Failure(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
TOO_MANY_OPS = Failure(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
_FILTERS = {
    "min_mod": "min_mod_revision",
    "max_mod": "max_mod_revision",
    "min_create": "min_create_revision",
    "max_create": "max_create_revision",
}
NEVER_GRANTED = 4711

Answer = TypeVar("Answer", bound=Message)


def refusal(text: str) -> Failure:
    """A failure with the beginning of one of esp's refusals."""
    return Failure(grpc.StatusCode.FAILED_PRECONDITION, f"esp: {text}")


class Problem(NamedTuple):
    """A reason why esp must fail a request that the single etcd may answer."""

    failure: Failure
    difference: Difference


class Unanswerable(Exception):
    """The single etcd was never in the requested state, which is inside a delete that goes in parts."""


class Run:
    """The run of one program.

    Attributes:
        noted: the differences that occurred, and how often.
    """

    def __init__(self, clusters: Clusters, noted: Counter[Difference], *, wiped: bool = True) -> None:
        self.clusters = clusters
        self.layout = clusters.layout
        self.mapping: Mapping = clusters.begin(wiped=wiped)
        self.noted = noted
        self.seen: list[Seen] = []
        self.leases: list[tuple[int, int]] = []
        self.step: p.Step | None = None
        self._tokens: dict[int, Seen] = {}
        self._seen_before: list[Seen] = []
        self.watchers = Watchers(self)

    def all_of(self, program: Sequence[p.Step]) -> None:
        """Runs the program, and checks at the end that the shards are at the right revisions."""
        try:
            for step in [*program, p.Range(**p.EVERYTHING)]:
                self.step = step
                self.take(step)
            self.watchers.collect()
            self.watchers.cancel_all()
            assert self.clusters.revisions() == self.mapping.vector()
        except AssertionError as error:
            error.add_note(f"in step {self.step}")
            raise
        finally:
            self.watchers.close()

    def take(self, step: p.Step) -> None:
        """Runs a step. Its references to earlier answers are to those before the step."""
        self._seen_before = list(self.seen)
        self._steps[type(step)](self, step)

    # Both sides.

    def note(self, difference: Difference) -> None:
        self.noted[difference] += 1

    def both(
        self, method: str, alone: Message, esp: Message, metadata: Sequence[tuple[str, str]] = ()
    ) -> tuple[Outcome, Outcome]:
        """The answers of the single etcd and of esp."""
        first = ask(self.clusters.alone, method, alone)
        return first, ask(self.clusters.across, method, esp, metadata)

    def must_fail(self, outcome: Outcome, problems: Sequence[Problem]) -> None:
        """Checks that `outcome` is the failure for one of these problems; esp may choose which."""
        assert isinstance(outcome, Failure), f"it was answered, in spite of {problems}"
        for failure, difference in problems:
            is_own = failure.text.startswith("esp: ")
            if outcome == failure or (
                is_own and outcome.code == failure.code and outcome.text.startswith(failure.text)
            ):
                self.note(difference)
                return
        raise AssertionError(f"{outcome}, but there is {problems}")

    def same(self, alone: Outcome, esp: Outcome, answer: type[Answer], expected: Callable[[Answer], Answer]) -> bool:
        """Checks that both failed alike, or that esp's answer is the expected one; False if both failed.

        With one shard the bytes must be equal.
        """
        if isinstance(alone, Failure) or isinstance(esp, Failure):
            assert esp == alone, f"{esp!r} is not {alone!r}"
            return False
        if self.clusters.exact:
            assert esp == alone, f"{answer.FromString(esp)} is not {answer.FromString(alone)}"
        else:
            equal(answer.FromString(esp), expected(answer.FromString(alone)))
        return True

    def wrote(self, revision: int, *, in_parts: bool = False) -> None:
        """Notes the single etcd's present revision: if it is new, the shards have new revisions as well."""
        if revision > self.mapping.now:
            assert revision == self.mapping.now + 1
            self.mapping.wrote((event.kv.key for event in self.clusters.observer.at(revision)), in_parts=in_parts)

    # Revisions.

    def number(self, rev: p.Rev) -> Number:
        """The number of a revision on each side."""
        before = self._seen_before
        if rev.back is None or not before:
            number = rev.plus if rev.back is None else 0
            return Number(number, number, is_unknown=number == p.NO_TOKEN_OF_OURS and not self.clusters.exact)
        seen = before[-1 - rev.back % len(before)]
        alone, esp = seen.alone + rev.plus, seen.esp + rev.plus
        if seen.revisions is None:
            return Number(alone, esp)
        return Number(alone, esp, seen.revisions, seen.is_apart, offset=rev.plus)

    def unknown_on(self, number: Number, shards: Collection[int]) -> list[Problem]:
        """The problems, if the number has no meaning on one of these shards."""
        if number.is_unknown:
            return [Problem(COMPACTED, Difference.UNKNOWN_TOKEN)]
        if number.revisions is not None and not number.revisions.keys() >= set(shards):
            return [Problem(COMPACTED, Difference.UNCOVERED)]
        if number.revisions is not None and not all(number.on_shard(shard) for shard in shards):
            return [Problem(COMPACTED, Difference.BEHIND_TOKEN)]  # before the first revision; 0 would be no revision
        return []

    def saw(self, alone: int, esp: int) -> None:
        self.seen.append(Seen(alone, esp))

    def saw_rows(self, alone: Sequence[kv_pb2.KeyValue]) -> None:
        """Notes the revisions of the first rows: later compares use them."""
        for row in alone[:2]:
            self.saw(row.mod_revision, self.mapping.write(row.mod_revision, row.key))

    def new_token(self, number: int, shards: Collection[int]) -> None:
        """Notes a token of esp for the present revisions of these shards."""
        vector = self.mapping.vector()
        self.token_for(number, {shard: vector[shard] for shard in shards})

    def token_for(self, number: int, revisions: Revisions) -> None:
        """Notes a token of esp for these revisions; checks its order among the others."""
        moment = self.mapping.last_like(revisions)
        here = Seen(moment or self.mapping.now, number, revisions, is_apart=moment is None)
        assert number >= MARK, "it is no token"
        assert self._tokens.setdefault(number, here).revisions == revisions, "an equal number has another meaning"
        assert number == max(self._tokens), "tokens go back"
        self.note(Difference.TOKEN)
        self.seen.append(here)

    # Headers and rows.

    def header_of(self, shard: int, revision: int) -> rpc_pb2.ResponseHeader:
        """The shard's header in place of a header of the single etcd with this revision."""
        header = rpc_pb2.ResponseHeader()
        header.CopyFrom(self.clusters.headers[shard])
        header.revision = self.mapping.vector(revision)[shard] if revision else 0
        return header

    def merged_header(self, shards: Collection[int], revision: int) -> rpc_pb2.ResponseHeader:
        """esp's header for these shards together."""
        self.note(Difference.HEADER_IDS)
        term = max(self.clusters.headers[shard].raft_term for shard in shards)
        identity = self.clusters.identity
        return rpc_pb2.ResponseHeader(
            cluster_id=identity.cluster_id, member_id=identity.member_id, revision=revision, raft_term=term
        )

    def row(self, row: kv_pb2.KeyValue) -> None:
        """Translates a row."""
        row.create_revision = self.mapping.write(row.create_revision, row.key)
        row.mod_revision = self.mapping.write(row.mod_revision, row.key)
        row.lease = dict(self.leases).get(row.lease, row.lease)

    def rows(self, answer: Any, header: rpc_pb2.ResponseHeader | None) -> Any:
        """Translates an answer with rows, or such an answer inside a transaction, which has only an inner header."""
        if header is not None:
            answer.header.CopyFrom(header)
        match answer:
            case rpc_pb2.RangeResponse():
                several = list(answer.kvs)
            case rpc_pb2.DeleteRangeResponse():
                several = list(answer.prev_kvs)
            case rpc_pb2.PutResponse():
                several = [answer.prev_kv] if answer.HasField("prev_kv") else []
            case _:
                raise AssertionError(f"what is {answer}?")
        for row in several:
            self.row(row)
        return answer

    # Put and DeleteRange.

    def lease(self, ref: p.LeaseRef | None) -> tuple[int, int]:
        """The ids on both sides."""
        if ref is None:
            return 0, 0
        if ref.back is None or not self.leases:
            return NEVER_GRANTED, NEVER_GRANTED
        return self.leases[-1 - ref.back % len(self.leases)]

    def put_requests(self, step: p.Put) -> tuple[rpc_pb2.PutRequest, rpc_pb2.PutRequest]:
        alone, esp = (
            rpc_pb2.PutRequest(
                key=step.key,
                value=b"" if step.ignore_value else step.value,
                lease=0 if step.ignore_lease else lease,
                prev_kv=step.prev_kv,
                ignore_value=step.ignore_value,
                ignore_lease=step.ignore_lease,
            )
            for lease in self.lease(step.lease)
        )
        return alone, esp

    def put(self, step: p.Put) -> None:
        shard = self.layout.owner(step.key)
        alone, esp = self.both("KV/Put", *self.put_requests(step))
        self._changed(alone, rpc_pb2.PutResponse)
        self._of_one_shard(alone, esp, rpc_pb2.PutResponse, shard)

    def _changed(self, alone: Outcome, answer: type[Any], *, in_parts: bool = False) -> None:
        if not isinstance(alone, Failure):
            self.wrote(answer.FromString(alone).header.revision, in_parts=in_parts)

    def _of_one_shard(self, alone: Outcome, esp: Outcome, answer: type[Any], shard: int) -> None:
        """Compares a shard's answer: that of the single etcd, with its revisions translated."""

        def expected(of: Any) -> Any:
            return self.rows(of, self.header_of(shard, of.header.revision))

        if self.same(alone, esp, answer, expected) and not isinstance(alone, Failure):
            revision = answer.FromString(alone).header.revision
            self.saw(revision, self.mapping.vector(revision)[shard])

    def delete(self, step: p.Delete) -> None:
        keys = KeyRange.of_request(step.key, step.end)
        request = rpc_pb2.DeleteRangeRequest(key=step.key, range_end=step.end, prev_kv=step.prev_kv)
        alone, esp = self.both("KV/DeleteRange", request, request)
        self._changed(alone, rpc_pb2.DeleteRangeResponse, in_parts=True)
        sole = self.layout.sole(keys)
        if sole is not None:
            self._of_one_shard(alone, esp, rpc_pb2.DeleteRangeResponse, sole)
            return
        shards = self.layout.shards_of(keys)
        if isinstance(esp, bytes):
            self.new_token(rpc_pb2.DeleteRangeResponse.FromString(esp).header.revision, shards)
            if self.mapping.now > self.mapping.first and self.mapping.width(self.mapping.now) > 1:
                self.note(Difference.DELETE_IN_PARTS)
        self.same(
            alone,
            esp,
            rpc_pb2.DeleteRangeResponse,
            lambda of: self.rows(of, self.merged_header(shards, self.seen[-1].esp)),
        )

    # Range.

    def range_request(self, step: p.Range, number: Callable[[p.Rev, str], int]) -> rpc_pb2.RangeRequest:
        """The request of a step; `number` gives the number for a revision, by the name of the step's field."""
        return _RANGE(
            key=step.key,
            range_end=step.end,
            limit=step.limit,
            revision=number(step.rev, "rev"),
            sort_order=step.order,  # type: ignore[arg-type]
            sort_target=step.target,  # type: ignore[arg-type]
            serializable=step.serializable,
            keys_only=step.keys_only,
            count_only=step.count_only,
            **{field: number(getattr(step, name), name) for name, field in _FILTERS.items()},
        )

    def meant(self, step: p.Range) -> rpc_pb2.RangeRequest:
        """The request to the single etcd for the meaning of esp's numbers, if they have no problem.

        Raises:
            Unanswerable: the single etcd has no such moment.
        """
        keys = KeyRange.of_request(step.key, step.end)
        shards = self.layout.shards_of(keys)
        sole = self.layout.sole(keys)

        def number(rev: p.Rev, name: str) -> int:
            number = self.number(rev)
            if number.esp <= 0 or (sole is None and name != "rev"):
                return number.esp
            if sole is None:
                assert number.revisions is not None, "esp refuses any other"
                moment = self.mapping.last_like({shard: number.revisions[shard] for shard in shards})
                if moment is None:
                    raise Unanswerable
                return moment
            here = number.on_shard(sole)
            if name == "rev":
                if not self.mapping.is_moment(sole, here):
                    raise Unanswerable
                return self.mapping.last_at(sole, here)
            return self.mapping.first_at(sole, here) if name.startswith("min") else self.mapping.last_at(sole, here)

        return self.range_request(step, number)

    def range_problems(self, step: p.Range) -> list[Problem]:
        """The problems for which esp must fail the step."""
        keys = KeyRange.of_request(step.key, step.end)
        shards = self.layout.shards_of(keys)
        sole = self.layout.sole(keys)
        filters = [self.number(getattr(step, name)) for name in _FILTERS]
        number = self.number(step.rev)
        problems = self.unknown_on(number, shards)
        if number.is_token and number.offset:
            problems.append(Problem(COMPACTED, Difference.BEHIND_TOKEN))
        if self.clusters.exact:
            return []
        if sole is not None:
            return problems + [problem for one in filters for problem in self.unknown_on(one, [sole])]
        if number.esp > 0 and not number.is_token and not number.is_unknown:
            problems.append(Problem(refusal("a Range at a revision spans the shards"), Difference.RAW_RANGE))
        if not step.count_only:
            if any(one.esp for one in filters):
                problems.append(Problem(refusal("a Range filtered by revision spans"), Difference.FILTER))
            if step.target in (_RANGE.CREATE, _RANGE.MOD):
                problems.append(Problem(refusal("a Range sorted by revision spans"), Difference.SORT_BY_REVISION))
        return problems

    def read(self, step: p.Range) -> None:
        stream = step.stream and self.clusters.streams
        if stream and step.order == _RANGE.NONE:
            step = replace(step, target=_RANGE.KEY)  # 3.7 sorts each chunk by itself

        metadata = reading(step)

        def call(channel: grpc.Channel, request: rpc_pb2.RangeRequest) -> Outcome:
            if stream:
                return stream_range(channel, request, metadata)
            return ask(channel, "KV/Range", request, metadata)

        problems = self.range_problems(step)
        natural = self.range_request(step, lambda rev, _: self.number(rev).alone)
        if not problems and self._is_apart(step):
            try:
                natural = self.meant(step)
            except Unanswerable:
                return
        esp = call(self.clusters.across, self.range_request(step, lambda rev, _: self.number(rev).esp))
        alone = call(self.clusters.alone, natural)
        if stream and isinstance(alone, Failure) and alone.code == grpc.StatusCode.UNIMPLEMENTED:
            assert esp == alone
            return
        if problems:
            self.must_fail(esp, problems)
            return
        if not isinstance(esp, Failure):
            self._saw_token(step, rpc_pb2.RangeResponse.FromString(esp).header.revision)
        try:
            self._same_range(step, alone, esp)
        except AssertionError:
            if self.clusters.exact:
                raise
            try:
                meant = self.meant(step)
            except Unanswerable:
                return
            if meant == natural:
                raise
            self._same_range(step, call(self.clusters.alone, meant), esp)
            self.note(self._why(step, alone))

    def _is_apart(self, step: p.Range) -> bool:
        """Whether the single etcd was never in a state that the step names, so that it cannot be asked for the step."""
        return any(self.number(getattr(step, name)).is_apart for name in ("rev", *_FILTERS))

    def _why(self, step: p.Range, natural: Outcome) -> Difference:
        """The difference because of which the numbers mean another moment than the single etcd's own."""
        if any(self.number(getattr(step, name)).is_token for name in _FILTERS):
            return Difference.TOKEN_COMPARED
        if self.number(step.rev).is_token:
            assert natural == COMPACTED
            return Difference.COMPACTED_ELSEWHERE
        return Difference.OWN_COUNT

    def _saw_token(self, step: p.Range, number: int) -> None:
        """Notes the revision of the header, if it is a token of several shards' present revisions."""
        keys = KeyRange.of_request(step.key, step.end)
        if self.layout.sole(keys) is None and not self.number(step.rev).is_token:
            self.new_token(number, self.layout.shards_of(keys))

    def _same_range(self, step: p.Range, alone: Outcome, esp: Outcome) -> None:
        if isinstance(alone, Failure) or isinstance(esp, Failure) or self.clusters.exact:
            self.same(alone, esp, rpc_pb2.RangeResponse, lambda of: of)
            if isinstance(alone, bytes):
                answer = rpc_pb2.RangeResponse.FromString(alone)
                self.saw(answer.header.revision, answer.header.revision)
                self.saw_rows(answer.kvs)
            return
        keys = KeyRange.of_request(step.key, step.end)
        sole = self.layout.sole(keys)
        answer = rpc_pb2.RangeResponse.FromString(alone)
        rows = list(rpc_pb2.RangeResponse.FromString(alone).kvs)
        number = self.number(step.rev)
        revision = answer.header.revision
        if number.is_token:
            header = self.merged_header(self.layout.shards_of(keys), number.esp)
        elif sole is not None:
            header = self.header_of(sole, revision)
        else:
            header = self.merged_header(self.layout.shards_of(keys), self.seen[-1].esp)
        expected = self.rows(answer, header)
        got = rpc_pb2.RangeResponse.FromString(esp)
        self.same_rows(step, expected, got)
        if sole is not None and not number.is_token:
            self.saw(revision, header.revision)
        self.saw_rows(rows)

    def same_rows(self, step: p.Range, expected: rpc_pb2.RangeResponse, got: rpc_pb2.RangeResponse) -> None:
        """Compares the rows; over several shards, rows of equal rank may be in another order."""
        sorted_by = step.target if step.order or step.target else _RANGE.KEY
        is_cut = self.layout.sole(KeyRange.of_request(step.key, step.end)) is None
        if got == expected or not is_cut or sorted_by not in (_RANGE.VERSION, _RANGE.VALUE):
            equal(got, expected)
            return
        equal(got, expected, without="kvs")
        # Rows are as before but for their order within a group; the last group may have been cut elsewhere.
        whole = self._all_rows(step)
        values = {key: row.value if sorted_by == _RANGE.VALUE else row.version for key, row in whole.items()}
        if step.keys_only:
            for row in whole.values():
                row.value = b""
        for row in got.kvs:
            if step.keys_only and self.clusters.streams and sorted_by != _RANGE.VALUE:
                whole[row.key].lease = row.lease  # 3.7 takes them from the index, which has no leases
            equal(row, whole[row.key])
        groups: list[list[tuple[Any, list[bytes]]]] = []
        for answer in (expected, got):
            of_one: list[tuple[Any, list[bytes]]] = []
            for row in answer.kvs:
                if not of_one or of_one[-1][0] != values[row.key]:
                    of_one.append((values[row.key], []))
                of_one[-1][1].append(row.key)
            groups.append([(value, sorted(keys)) for value, keys in of_one])
        mine, theirs = groups
        if expected.more:
            last, other = mine.pop(), theirs.pop()
            assert (last[0], len(last[1])) == (other[0], len(other[1]))
        assert mine == theirs
        assert len({row.key for row in got.kvs}) == len(got.kvs)
        self.note(Difference.TIES)

    def _all_rows(self, step: p.Range) -> dict[bytes, kv_pb2.KeyValue]:
        """All rows of the single etcd from which the step may choose, translated."""
        request = self.meant(p.Range(step.key, step.end, step.rev))
        answer = ask(self.clusters.alone, "KV/Range", request)
        assert isinstance(answer, bytes)
        translated = self.rows(rpc_pb2.RangeResponse.FromString(answer), None)
        return {row.key: row for row in translated.kvs}

    def pages(self, step: p.Pages) -> None:
        """Reads a list to its end, at the revision of its first page, with other steps between the pages."""
        between = list(step.between)
        key, rev = step.key, p.LATEST
        while True:
            one = p.Range(key, step.end, rev, step.limit, stream=step.stream)
            before = len(self.seen)
            self.take(one)
            if len(self.seen) == before:
                return  # a page from its middle on may be in a shard, whose history is not compacted for it alone
            if rev == p.LATEST:
                first = self.seen[before]
            self.seen.append(first)
            rev = p.Rev(0)
            self._seen_before = list(self.seen)
            answer = ask(self.clusters.alone, "KV/Range", self.range_request(one, lambda r, _: self.number(r).alone))
            if isinstance(answer, Failure) or not (page := rpc_pb2.RangeResponse.FromString(answer)).more:
                return
            key = page.kvs[-1].key + b"\0"
            if between:
                self.take(between.pop())
                self.seen.append(first)

    # Txn.

    def txn_request(self, step: p.Txn, side: int, ranges: Callable[[p.Range], _RANGE], compared: Any) -> Any:
        """The request for the single etcd (side 0) or esp (1), with the revisions that the functions give."""
        request = rpc_pb2.TxnRequest()
        for one in step.compare:
            compare = request.compare.add(key=one.key, range_end=one.end, result=one.result, target=one.target)
            match one.target:
                case rpc_pb2.Compare.VERSION:
                    compare.version = one.number
                case rpc_pb2.Compare.CREATE:
                    compare.create_revision = compared(one.rev)
                case rpc_pb2.Compare.MOD:
                    compare.mod_revision = compared(one.rev)
                case rpc_pb2.Compare.VALUE:
                    compare.value = one.value
                case rpc_pb2.Compare.LEASE:
                    compare.lease = self.lease(one.lease)[side]
        for operations, branch in ((step.success, request.success), (step.failure, request.failure)):
            for operation in operations:
                match operation:
                    case p.Put():
                        branch.add().request_put.CopyFrom(self.put_requests(operation)[side])
                    case p.Range():
                        branch.add().request_range.CopyFrom(ranges(operation))
                    case p.Delete(key, end, prev_kv):
                        deleted = rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv)
                        branch.add().request_delete_range.CopyFrom(deleted)
                    case p.Txn():
                        branch.add().request_txn.CopyFrom(self.txn_request(operation, side, ranges, compared))
        return request

    def txn(self, step: p.Txn) -> None:
        def natural_range(one: p.Range) -> _RANGE:
            return self.range_request(one, lambda rev, _: self.number(rev).alone)

        natural = self.txn_request(step, 0, natural_range, lambda rev: self.number(rev).alone)
        request = self.txn_request(
            step,
            1,
            lambda one: self.range_request(one, lambda rev, _: self.number(rev).esp),
            lambda rev: self.number(rev).esp,
        )
        # Inside a branch that does not run etcd checks it, and does nothing.
        never = rpc_pb2.Compare(key=b"a", target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.LESS, version=0)
        checked = rpc_pb2.TxnRequest(compare=[never], success=[rpc_pb2.RequestOp(request_txn=natural)])
        wrong = ask(self.clusters.alone, "KV/Txn", checked)
        if isinstance(wrong, Failure):
            esp = ask(self.clusters.across, "KV/Txn", request, reading(step))
            if wrong == TOO_MANY_OPS and self._is_read_across(step):
                assert isinstance(esp, Failure)  # which may come before it is asked how many there may be
                return
            # How many are too many the shard says, which a token without meaning there never gets to.
            is_counted = wrong == TOO_MANY_OPS and esp == COMPACTED
            assert esp == wrong or (is_counted and self._has_tokens(step))
            return
        ranges = list(touched_by(step))
        if not ranges and not self.clusters.exact:
            self._txn_of_nothing(natural, request)
            return
        touched = [keys for keys in ranges if not keys.is_empty()] or ranges[:1]
        soles = {self.layout.sole(keys) for keys in touched} or {0}
        [sole] = soles if len(soles) == 1 else [None]
        if sole is None:
            only_reads = all(isinstance(one, p.Range) for one in (*step.success, *step.failure))
            if only_reads and not step.compare:
                self._txn_of_reads(step, natural, request)
            else:
                problem = Problem(refusal("a transaction spans the shards"), Difference.TXN)
                self.must_fail(ask(self.clusters.across, "KV/Txn", request, reading(step)), [problem])
            return
        problems = self._txn_problems(step, sole)
        if problems:
            self.must_fail(ask(self.clusters.across, "KV/Txn", request, reading(step)), problems)
            return
        if self.clusters.exact:
            meant = natural
        else:
            try:
                meant = self.txn_request(
                    step,
                    0,
                    lambda one: self._meant_on(one, sole),
                    lambda rev: self.mapping.first_at(sole, self.number(rev).on_shard(sole)),
                )
            except Unanswerable:
                return
        alone, esp = self.both("KV/Txn", meant, request, reading(step))
        self._changed(alone, rpc_pb2.TxnResponse)

        def expected(of: rpc_pb2.TxnResponse) -> rpc_pb2.TxnResponse:
            for answer in answers_in(of):
                self.rows(answer, rpc_pb2.ResponseHeader(revision=self.mapping.vector(answer.header.revision)[sole]))
            for txn in txns_in(of):
                if txn.HasField("header"):
                    txn.header.revision = self.mapping.vector(txn.header.revision)[sole] if txn.header.revision else 0
            of.header.CopyFrom(self.clusters.headers[sole])
            of.header.revision = self.mapping.vector()[sole]
            return of

        if self.same(alone, esp, rpc_pb2.TxnResponse, expected):
            self.saw(self.mapping.now, self.mapping.vector()[sole])

    def _has_tokens(self, step: p.Txn) -> bool:
        """Whether the step has a token, or a number that looks like one."""
        reads = [one for txn in txns_of(step) for one in (*txn.success, *txn.failure) if isinstance(one, p.Range)]
        revs = [getattr(one, name) for one in reads for name in ("rev", *_FILTERS)]
        revs += [compare.rev for txn in txns_of(step) for compare in txn.compare]
        return any(self.number(rev).is_token or self.number(rev).is_unknown for rev in revs)

    def _is_read_across(self, step: p.Txn) -> bool:
        """Whether the step only reads, compares nothing, and spans shards."""
        ranges = list(touched_by(step))
        touched = [keys for keys in ranges if not keys.is_empty()] or ranges[:1]
        soles = {self.layout.sole(keys) for keys in touched}
        only_reads = all(isinstance(one, p.Range) for one in (*step.success, *step.failure))
        return only_reads and not step.compare and not self.clusters.exact and (len(soles) > 1 or soles == {None})

    def _txn_of_nothing(self, natural: rpc_pb2.TxnRequest, request: rpc_pb2.TxnRequest) -> None:
        """Runs a transaction without keys, which belongs to no shard."""
        alone, esp = self.both("KV/Txn", natural, request)
        everywhere = range(len(self.clusters.shards))
        if isinstance(esp, bytes):
            self.new_token(rpc_pb2.TxnResponse.FromString(esp).header.revision, everywhere)

        def expected(of: rpc_pb2.TxnResponse) -> rpc_pb2.TxnResponse:
            of.header.CopyFrom(self.merged_header(everywhere, self.seen[-1].esp))
            return of

        self.same(alone, esp, rpc_pb2.TxnResponse, expected)

    def _meant_on(self, step: p.Range, sole: int) -> _RANGE:
        """As `meant`, for a range inside a transaction of one shard; an empty range may be in another shard."""

        def number(rev: p.Rev, name: str) -> int:
            number = self.number(rev)
            if number.esp <= 0:
                return number.esp
            here = number.on_shard(sole)
            if name == "rev" and not self.mapping.is_moment(sole, here):
                raise Unanswerable
            is_first = name.startswith("min")
            return self.mapping.first_at(sole, here) if is_first else self.mapping.last_at(sole, here)

        return self.range_request(step, number)

    def _txn_problems(self, step: p.Txn, sole: int) -> list[Problem]:
        """The problems for which esp must fail a transaction in one shard: numbers without a meaning there."""
        if self.clusters.exact:
            return []
        problems: list[Problem] = []
        for txn in txns_of(step):
            for compare in txn.compare:
                if compare.target in (rpc_pb2.Compare.CREATE, rpc_pb2.Compare.MOD):
                    problems += self.unknown_on(self.number(compare.rev), [sole])
            for one in (*txn.success, *txn.failure):
                if isinstance(one, p.Range):
                    number = self.number(one.rev)
                    problems += self.unknown_on(number, [sole])
                    if number.is_token and number.offset:
                        problems.append(Problem(COMPACTED, Difference.BEHIND_TOKEN))
                    for name in _FILTERS:
                        problems += self.unknown_on(self.number(getattr(one, name)), [sole])
        return problems

    def _txn_of_reads(self, step: p.Txn, natural: rpc_pb2.TxnRequest, request: rpc_pb2.TxnRequest) -> None:
        """Runs reads of several shards at one moment; a read with a revision of its own is at that revision."""
        esp = ask(self.clusters.across, "KV/Txn", request, reading(step))
        asked = [one for one in step.success if isinstance(one, p.Range)]
        problems = [problem for one in asked for problem in self.range_problems(one)]
        if problems:
            # Or one that the one etcd has as well.
            if esp not in (COMPACTED, FUTURE):
                self.must_fail(esp, problems)
            return
        if any(map(self._is_apart, asked)):
            try:
                natural = self._meant_reads(step)
            except Unanswerable:
                return
        alone = ask(self.clusters.alone, "KV/Txn", natural)
        if isinstance(alone, Failure) and isinstance(esp, Failure):
            assert {alone, esp} <= {COMPACTED, FUTURE}  # of two reads the one or the other
            return
        unread = [one for one in step.failure if isinstance(one, p.Range)]
        shards = {shard for one in asked or unread for shard in self.shards_of(one)}
        latest = {shard for one in asked if self.number(one.rev).esp <= 0 for shard in self.shards_of(one)}
        token = 0
        if isinstance(esp, bytes):
            token = rpc_pb2.TxnResponse.FromString(esp).header.revision
            self.new_token(token, latest or shards)
        try:
            self._same_reads(asked, alone, esp, self.merged_header(shards, token))
        except AssertionError:
            try:
                meant = self._meant_reads(step)
            except Unanswerable:
                return
            if meant == natural:
                raise
            self._same_reads(asked, ask(self.clusters.alone, "KV/Txn", meant), esp, self.merged_header(shards, token))

    def _meant_reads(self, step: p.Txn) -> rpc_pb2.TxnRequest:
        """The request to the single etcd for the meaning of esp's numbers; without the branch that does not run.

        Raises:
            Unanswerable: the single etcd has no such moment.
        """
        meant: rpc_pb2.TxnRequest = self.txn_request(replace(step, failure=()), 0, self.meant, None)
        return meant

    def shards_of(self, step: p.Range) -> set[int]:
        return self.layout.shards_of(KeyRange.of_request(step.key, step.end))

    def _same_reads(
        self, asked: Sequence[p.Range], alone: Outcome, esp: Outcome, header: rpc_pb2.ResponseHeader
    ) -> None:
        if isinstance(alone, Failure) or isinstance(esp, Failure):
            assert esp == alone
            return
        right, got = rpc_pb2.TxnResponse.FromString(alone), rpc_pb2.TxnResponse.FromString(esp)
        inner = rpc_pb2.ResponseHeader(revision=header.revision)
        assert len(got.responses) == len(right.responses) == len(asked)
        for step, mine, theirs in zip(asked, got.responses, right.responses, strict=True):
            self.same_rows(step, self.rows(theirs.response_range, inner), mine.response_range)
        right.header.CopyFrom(header)
        equal(got, right, without="responses")

    # Leases.

    def lease_header(self) -> rpc_pb2.ResponseHeader:
        self.note(Difference.LEASE_HEADER)
        return self.merged_header(range(len(self.clusters.shards)), min(self.mapping.vector()))

    def grant(self, step: p.Grant) -> None:
        if step.again is not None and step.again.back is not None and self.leases:
            ids = self.lease(step.again)
        else:
            chosen = self.clusters.new_lease() if step.chosen or self.clusters.exact else 0
            ids = chosen, chosen
        alone, esp = self.both(
            "Lease/LeaseGrant", *(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=step.ttl) for lease in ids)
        )

        def expected(of: rpc_pb2.LeaseGrantResponse) -> rpc_pb2.LeaseGrantResponse:
            of.header.CopyFrom(self.lease_header())
            if not ids[1]:
                assert isinstance(esp, bytes)
                own = rpc_pb2.LeaseGrantResponse.FromString(esp).ID
                assert own > 0
                assert own not in [lease for _, lease in self.leases]
                of.ID = own
                self.note(Difference.LEASE_ID)
            return of

        granted = rpc_pb2.LeaseGrantResponse
        if self.same(alone, esp, granted, expected) and isinstance(alone, bytes) and isinstance(esp, bytes):
            pair = granted.FromString(alone).ID, granted.FromString(esp).ID
            if pair not in self.leases:
                self.leases.append(pair)

    def revoke(self, step: p.Revoke) -> None:
        requests = (rpc_pb2.LeaseRevokeRequest(ID=lease) for lease in self.lease(step.lease))
        alone, esp = self.both("Lease/LeaseRevoke", *requests)
        self._changed(alone, rpc_pb2.LeaseRevokeResponse)
        self.same(
            alone, esp, rpc_pb2.LeaseRevokeResponse, lambda of: rpc_pb2.LeaseRevokeResponse(header=self.lease_header())
        )

    def time_to_live(self, step: p.TimeToLive) -> None:
        alone_id, esp_id = self.lease(step.lease)
        alone, esp = self.both(
            "Lease/LeaseTimeToLive",
            *(rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=step.keys) for lease in (alone_id, esp_id)),
        )
        if isinstance(alone, Failure) or isinstance(esp, Failure):
            assert esp == alone
            return
        right, got = (rpc_pb2.LeaseTimeToLiveResponse.FromString(answer) for answer in (alone, esp))
        if right.keys != got.keys:
            self.note(Difference.LEASE_ORDER)
        for answer in (right, got):
            assert answer.TTL == -1 if not answer.grantedTTL else 0 < answer.TTL <= answer.grantedTTL
            ordered = sorted(answer.keys)
            del answer.keys[:]
            answer.keys.extend(ordered)
        self.note(Difference.LEASE_CLOCK)
        right.TTL = got.TTL
        if not self.clusters.exact:
            right.ID = esp_id
            right.header.CopyFrom(self.lease_header())
        equal(got, right)

    def keep_alive(self, step: p.KeepAlive) -> None:
        alone_id, esp_id = self.lease(step.lease)
        alone, esp = keep_alive(self.clusters.alone, alone_id), keep_alive(self.clusters.across, esp_id)

        def expected(of: rpc_pb2.LeaseKeepAliveResponse) -> rpc_pb2.LeaseKeepAliveResponse:
            of.ID = esp_id
            of.header.CopyFrom(self.lease_header())
            return of

        self.same(alone, esp, rpc_pb2.LeaseKeepAliveResponse, expected)

    def list_leases(self, step: p.Leases) -> None:
        request = rpc_pb2.LeaseLeasesRequest()
        alone, esp = self.both("Lease/LeaseLeases", request, request)
        if self.clusters.exact:
            assert esp == alone
            return
        assert isinstance(alone, bytes)
        assert isinstance(esp, bytes)
        right, got = (rpc_pb2.LeaseLeasesResponse.FromString(answer) for answer in (alone, esp))
        ids = dict(self.leases)
        theirs, mine = [ids[lease.ID] for lease in right.leases], [lease.ID for lease in got.leases]
        if mine != theirs:
            self.note(Difference.LEASE_ORDER)
        assert sorted(mine) == sorted(theirs)
        equal(got, rpc_pb2.LeaseLeasesResponse(header=self.lease_header()), without="leases")

    # Compact.

    def compact(self, step: p.Compact) -> None:
        self.watchers.let_compact()
        number = self.number(step.rev)
        if (number.offset < 0 or number.is_apart) and not self.clusters.exact:
            return  # the one etcd has no such moment: one revision less on each shard is none either
        request = rpc_pb2.CompactionRequest(revision=number.esp, physical=step.physical)
        problem: Problem | None = None
        everywhere = range(len(self.clusters.shards))
        if self.clusters.exact:
            pass
        elif number.is_unknown:
            problem = Problem(COMPACTED, Difference.UNKNOWN_TOKEN)
        elif number.revisions is None:
            problem = Problem(refusal("a compaction spans the shards"), Difference.COMPACT_RAW)
        elif number.offset > 0:
            problem = Problem(FUTURE, Difference.BEHIND_TOKEN)
        elif not number.revisions.keys() >= set(everywhere):
            problem = Problem(refusal("a compaction at this revision leaves out"), Difference.COMPACT_PART)
        if problem is not None:
            self.must_fail(ask(self.clusters.across, "KV/Compact", request), [problem])
            return
        natural = rpc_pb2.CompactionRequest(revision=number.alone, physical=step.physical)
        alone, esp = self.both("KV/Compact", natural, request)

        def expected(of: rpc_pb2.CompactionResponse) -> rpc_pb2.CompactionResponse:
            of.header.CopyFrom(self.merged_header(everywhere, number.esp))
            return of

        if self.same(alone, esp, rpc_pb2.CompactionResponse, expected):
            self.mapping.compacted = number.alone

    # Watch: watchers.py.

    def watch(self, step: p.Watch) -> None:
        self.watchers.create(step)

    def cancel(self, step: p.Cancel) -> None:
        self.watchers.cancel(step)

    def resume(self, step: p.Resume) -> None:
        self.watchers.resume(step)

    def progress(self, step: p.Progress) -> None:
        self.watchers.progress()

    _steps: ClassVar[dict[type, Callable[[Run, Any], None]]] = {
        p.Put: put,
        p.Delete: delete,
        p.Range: read,
        p.Pages: pages,
        p.Txn: txn,
        p.Grant: grant,
        p.Revoke: revoke,
        p.TimeToLive: time_to_live,
        p.KeepAlive: keep_alive,
        p.Leases: list_leases,
        p.Compact: compact,
        p.Watch: watch,
        p.Cancel: cancel,
        p.Resume: resume,
        p.Progress: progress,
    }


def reading(step: p.Range | p.Txn) -> list[tuple[str, str]]:
    """The metadata with which clients choose between a snapshot and a read of each shard at its own moment."""
    return [("esp-read", step.read)] if step.read else []


def equal(got: Message, expected: Message, without: str = "") -> None:
    """Compares two messages field by field, except the field `without`."""
    if without:
        copies = []
        for message in (got, expected):
            copy = type(message)()
            copy.CopyFrom(message)
            copy.ClearField(without)
            copies.append(copy)
        got, expected = copies
    assert got == expected, f"esp says\n{got}\nand should say\n{expected}"


def txns_of(step: p.Txn) -> Iterator[p.Txn]:
    """The transaction, and all nested ones."""
    yield step
    for one in (*step.success, *step.failure):
        if isinstance(one, p.Txn):
            yield from txns_of(one)


def touched_by(step: p.Txn) -> Iterator[KeyRange]:
    for txn in txns_of(step):
        for one in (*txn.compare, *txn.success, *txn.failure):
            if not isinstance(one, p.Txn):
                yield KeyRange.of_request(one.key, b"" if isinstance(one, p.Put) else one.end)


def txns_in(answer: rpc_pb2.TxnResponse) -> Iterator[rpc_pb2.TxnResponse]:
    """The answers of nested transactions."""
    for operation in answer.responses:
        if operation.HasField("response_txn"):
            yield operation.response_txn
            yield from txns_in(operation.response_txn)


def answers_in(answer: rpc_pb2.TxnResponse) -> Iterator[Any]:
    """The answers of all other operations, of nested transactions too."""
    for txn in (answer, *txns_in(answer)):
        for operation in txn.responses:
            kind = operation.WhichOneof("response")
            if kind != "response_txn":
                yield getattr(operation, str(kind))
