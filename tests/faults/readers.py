"""The readers of what others wrote, and what must hold of each whatever it is given.

A reader's `check` reads a folder's files and raises an AssertionError where a result
is wrong; what the reader raises itself must be an InputError of one line.
"""

import csv
import dataclasses
import gzip
import io
import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiger_jax import cli
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop
from tiger_jax.data.readers import amazon
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.movielens import MovielensConfig
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.embedding.ready_made import load_ready_made
from tiger_jax.errors import InputError
from tiger_jax.recommending.histories_wanted import read_histories
from tiger_jax.recommending.new_items import read_new_items
from tiger_jax.semantic_ids.peer_codes import load_peer_codes


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of one file among others that are as they should be.

    Attributes:
        name: What it reads.
        file: The name of the file that is hostile.
        seeds: Contents that are right, to start from.
        others: The files beside it.
        check: Reads the folder and checks the result.
        tokens: Pieces of text that mean something to this reader.
    """

    name: str
    file: str
    seeds: tuple[bytes, ...]
    check: Callable[[Path], None]
    others: tuple[tuple[str, bytes], ...] = ()
    tokens: tuple[bytes, ...] = ()

    def prepare(self, folder: Path) -> None:
        """Writes the files beside."""
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)
        for name, content in self.others:
            (folder / name).write_bytes(content)

    def problem(self, folder: Path, content: bytes) -> str:
        """What is wrong with how this content is read, or ""."""
        (folder / self.file).write_bytes(content)
        try:
            with warnings.catch_warnings():
                for category in _SHOWN_TO_USERS:
                    warnings.simplefilter("error", category)
                self.check(folder)
        except InputError as error:
            text = str(error)
            if "\n" in text or not text or len(text) > 3000:
                return f"no line of a message: {text[:200]!r} for {_shown(content)}"
        except AssertionError as error:
            return f"wrong: {' '.join(str(error).split())[:300]} for {_shown(content)}"
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            at = "" if trace is None else _place(trace)
            text = " ".join(str(error).split())[:200]
            return f"{type(error).__name__} at {at}: {text} for {_shown(content)}"
        return ""


_SHOWN_TO_USERS = (RuntimeWarning, UserWarning, FutureWarning, SyntaxWarning)


def _place(trace) -> str:
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _shown(content: bytes) -> str:
    text = repr(content)
    return text if len(text) < 300 else f"{text[:300]}… ({len(content):,} bytes)"


# --- Shops ------------------------------------------------------------------------

ITEMS_CSV = (
    b"item_id,title,brand,price,categories\n"
    b'a,"Red polish, shiny",OPI,$4.50,Beauty > Nails\n'
    b"b,Blue polish,,\"1,299.00\",\"[['Beauty', 'Nails'], ['Gifts']]\"\n"
    b"c,,Essie,,\n"
)
INTERACTIONS_CSV = (
    b"user_id,item_id,timestamp\nu1,a,3\nu1,b,2014-07-01\nu2,c,2\n",
    b"user_id,item_id,timestamp\nu1,a,3\nu1,b,1\nu2,c,2\n",
)
ITEMS_JSONL = (
    b'{"item_id": "a", "title": "Red \\u00e9", "price": 4.5, "categories": [["X"]]}\n'
    b'{"item_id": "b", "brand": "OPI", "price": "$3", "categories": "A > B | C"}\n\n'
    b'{"item_id": 7, "title": null, "colour": true}\n'
)
INTERACTIONS_JSONL = (
    b'{"user_id": "u", "item_id": "a", "timestamp": 1}\n'
    b'{"user_id": 5, "item_id": "b", "timestamp": 2.5, "rating": 4}\n'
)
_SMALL_ITEMS = b"item_id,title\na,x\nb,y\nc,z\n7,w\n"


def check_shop(shop: RawShop) -> None:
    """What every shop keeps, whatever it was read from."""
    for table, columns in ((shop.items, ITEM_COLUMNS),):
        table.validate(full=True)
        for name, kind in columns.items():
            assert table[name].type == kind, f"{name} is {table[name].type}"
    events = shop.interactions
    events.validate(full=True)
    for name, kind in INTERACTION_COLUMNS.items():
        assert events[name].type == kind, f"{name} is {events[name].type}"
    ids = shop.items["item_id"].to_pylist()
    assert len(set(ids)) == len(ids) > 0, "item ids are not unique"
    assert "" not in ids
    assert None not in ids
    assert set(events["item_id"].to_pylist()) <= set(ids), "an event without item"
    assert pc.all(pc.is_finite(events["timestamp"])).as_py() in (True, None)
    prices = shop.items["price"].drop_null().to_numpy()
    assert (np.isfinite(prices) & (prices > 0)).all(), "a price that is none"


def _check_files(items: str, interactions: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        paths = folder / items, folder / interactions
        shop = FilesConfig().read(folder)
        check_shop(shop)
        for path, table in zip(paths, (shop.items, shop.interactions), strict=True):
            expected = _SLOW.get(path.suffix, lambda _: None)(path)
            if expected is not None:
                found = table["item_id"].to_pylist()
                assert found == expected, f"read {found[:5]}, not {expected[:5]}"

    return check


def _ids_of_csv(path: Path) -> list[str] | None:
    """The item ids, as Python's own reader of CSV gives them."""
    content = path.read_bytes()
    if content.startswith(_NOT_UTF8) or re.search(rb"[;\t|\0]|\\\"", content):
        return None  # a dialect; and csv refuses NUL, which pyarrow reads
    text = content.decode("utf-8-sig")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
    names = [name.strip() for name in rows[0]]
    if "item_id" not in names:
        return None  # a name that is nearly so was found
    place = names.index("item_id")
    return [row[place] for row in rows[1:]]


def _ids_of_jsonl(path: Path) -> list[str] | None:
    content = path.read_bytes()
    if content.startswith(_NOT_UTF8):
        return None
    lines = re.split(rb"[\r\n]+", content.removeprefix(b"\xef\xbb\xbf"))
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return None
    if any("item_id" not in row for row in rows):
        return None  # a name that is nearly so was found
    ids = [row["item_id"] for row in rows]
    if float in map(type, ids):
        return None  # whole ones are numbers without a point, if all are numbers
    return [i if isinstance(i, str) else json.dumps(i) for i in ids]


_NOT_UTF8 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff", b"\x1f\x8b")
_SLOW = {".csv": _ids_of_csv, ".jsonl": _ids_of_jsonl}


def _parquet(table: dict[str, list] | pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink)
    del options
    return sink.getvalue()


_PARQUET_ITEMS = (
    _parquet({"item_id": ["a", "b", "c"], "title": ["x", None, "z"]}),
    _parquet(
        {
            "item_id": pa.array(["a", "b", "c"]).dictionary_encode(),
            "price": pa.array([1, None, 3], pa.decimal128(5, 2)),
            "categories": [[["A", "B"]], [], None],
            "odd": [{"k": 1}, None, {"k": 2}],
        }
    ),
    _parquet({"item_id": [1, 2, 3], "when": pa.array([1, 2, 3], pa.timestamp("ns"))}),
)
_DIALECTS = (
    b"sep=;\r\nitem_id;title;price\r\na;x;1,5\r\nb;y;\r\n",
    b'item_id;"title";;\na;"Pipe 5\\" wide; new \\"x\\" y";;\nb;"\\N";;\nc;z;;\n',
    ",item_id,title\n0,a,Nail &amp; Co\n1,b,é\n".encode("utf-16"),
    gzip.compress(b"item_id|title\na|x\nb|y\nc|z\n", mtime=0),
)
_ITEM = (
    b"item_id:token\ttitle:token_seq\tcategories:token_seq\tprice:float\n"
    b'a\tThe "Big" One\tDrama, Comedy\t3.5\nb\tOther\t\t\n'
)
_INTER = (
    b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    b"u1\ta\t4\t10\nu1\tb\t2\t5\n"
)


def _check_any(folder: Path) -> None:
    check_shop(find_source(folder).read())


def _check_new_items(folder: Path) -> None:
    for name in ("new.csv", "new.jsonl"):
        if (folder / name).exists():
            items = read_new_items(str(folder / name), FilesConfig(), None)
            assert items
            assert all(item.item_id for item in items)
            json.dumps([item.title for item in items], ensure_ascii=False).encode()


def _check_histories(folder: Path) -> None:
    for path in folder.glob("histories.*"):
        for wanted in read_histories(path):
            assert isinstance(wanted.user, str)
            assert all(isinstance(item, str) for item in wanted.history)
            "".join(wanted.history).encode()


def _check_recbole(folder: Path) -> None:
    check_shop(RecboleConfig().read(folder))


def _check_movielens(folder: Path) -> None:
    check_shop(MovielensConfig().read(folder))


# --- Amazon's raw files -------------------------------------------------------------

_REVIEW = (
    b'{"reviewerID": "U1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1}\n'
    b'{"reviewerID": "U2", "asin": "B2", "overall": 1, "unixReviewTime": 9}\n'
)
_META = (
    b"{'asin': 'B1', 'title': 'Nail &amp; Co', 'price': 4.99, 'categories': [['A']]}\n"
    b"{'asin': 'B2', 'title': 'The 'Best' Cream'}\n"
    b"{'asin': 'B3', 'title': __import__('os').getcwd()}\n"
)


_META_2023 = (
    b'{"title": "Nail", "price": 4.5, "store": "L", "categories": ["A", "B"], '
    b'"parent_asin": "B1"}\n{"title": null, "price": "$3.00", "parent_asin": "B2"}\n'
)
_MAPS = (
    b'{"id2user": {"1": "A1", "2": "A2"}, "id2item": {"1": "B3", "2": "B1", "3": "B2"}}'
)


_REVIEW_2018 = (
    b'{"overall": 5.0, "verified": true, "reviewTime": "09 1, 2016", "reviewerID": '
    b'"U1", "asin": "B1", "style": {"Size:": " S"}, "unixReviewTime": 1472688000}\n'
)
_META_2018 = (
    b'{"category": ["Beauty", "Nails"], "title": "Nail", "brand": "O", "price": '
    b'"$4.50", "asin": "B1"}\n{"category": [], "title": "var aPageStart = (new Date())'
    b'.getTime();", "price": ".a-box-inner{}", "asin": "B2"}\n'
)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _check_reviews(folder: Path) -> None:
    reviews = amazon.read_reviews(folder / "reviews.json.gz")
    columns = dataclasses.astuple(reviews)
    assert len({len(column) for column in columns}) == 1
    assert all(isinstance(user, str) and user for user in reviews.user_ids)
    assert np.isfinite(reviews.ratings).all()


def _check_metadata(folder: Path) -> None:
    wanted = {"B1", "B2", "B3"}
    found, skipped = amazon.read_metadata(folder / "meta.json.gz", wanted)
    assert set(found) <= wanted
    assert skipped == sorted(skipped)
    for about in found.values():
        assert isinstance(about.title, str)
        about.title.encode()  # whole characters
        assert not about.price < 0


def _plain(reader: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    """The same reader, of a file that is compressed here."""

    def check(folder: Path) -> None:
        path = folder / name
        path.write_bytes(_gzip(path.read_bytes()))
        reader(folder)

    return check


# --- The rest -----------------------------------------------------------------------


def _check_codes(folder: Path) -> None:
    peer = load_peer_codes(folder / "codes.json", ("a", "b", "c"))
    assert peer.codes.dtype == np.int32
    assert (peer.codes >= -1).all()
    assert (peer.codes[peer.missing] == -1).all()
    text = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
    for number, item_id in enumerate("abc") if isinstance(text, dict) else ():
        expected = text.get(item_id, [-1] * peer.codes.shape[1])
        if all(isinstance(code, int) for code in expected):
            assert peer.codes[number].tolist() == expected


def _check_ready_made(folder: Path) -> None:
    rows = np.array([2, 0, 1])
    found = load_ready_made(folder / "vectors.npy", 3, rows)
    expected = np.load(folder / "vectors.npy", allow_pickle=False)[rows]
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def _npy(array: np.ndarray, **options) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


def _check_gin(folder: Path) -> None:
    try:
        cli.parse_gin([str(folder / "run.gin")], [])
        gin.config_str()
    finally:
        gin.clear_config()
        logging.disable(logging.NOTSET)


_GIN = (
    b"# a comment\nSEED = 3\ntrain_recommender.seed = %SEED\n"
    b"tiger.TigerConfig.d_model = 16\nloop.LoopConfig.best_metric = 'recall@10'\n"
    b"train_recommender.model = @tiger.TigerConfig()\n",
    b"include 'base/tiger.gin'\nresident.ResidentConfig.bucket_items = (2, 4,\n  6)\n"
    b"a/tiger.TigerConfig.dropout_rate = 0.1\n",
)

READERS = (
    Reader(
        "CSV items",
        "items.csv",
        (ITEMS_CSV,),
        _check_files("items.csv", "interactions.csv"),
        (("interactions.csv", INTERACTIONS_CSV[1]),),
    ),
    Reader(
        "CSV interactions",
        "interactions.csv",
        INTERACTIONS_CSV,
        _check_files("items.csv", "interactions.csv"),
        (("items.csv", _SMALL_ITEMS),),
    ),
    Reader(
        "JSONL items",
        "items.jsonl",
        (ITEMS_JSONL,),
        _check_files("items.jsonl", "interactions.csv"),
        (("interactions.csv", b"user_id,item_id,timestamp\nu,a,1\n"),),
    ),
    Reader(
        "JSONL interactions",
        "interactions.jsonl",
        (INTERACTIONS_JSONL, INTERACTIONS_JSONL.splitlines(keepends=True)[0] * 5),
        _check_files("items.csv", "interactions.jsonl"),
        (("items.csv", _SMALL_ITEMS),),
    ),
    Reader(
        "Parquet",
        "items.parquet",
        _PARQUET_ITEMS,
        _check_files("items.parquet", "interactions.csv"),
        (("interactions.csv", b"user_id,item_id,timestamp\nu,a,1\n"),),
    ),
    Reader(
        "Parquet parts",
        "items.parquet/part-00001.parquet",
        _PARQUET_ITEMS[:1],
        _check_any,
        (
            ("items.parquet/part-00000.parquet", _PARQUET_ITEMS[0]),
            ("items.parquet/_SUCCESS", b""),
            ("interactions.csv", b"user_id,item_id,timestamp\nu,a,1\n"),
        ),
    ),
    Reader(
        "CSV dialects",
        "items.csv",
        _DIALECTS,
        _check_any,
        (("interactions.csv", INTERACTIONS_CSV[1]),),
        (b"sep=", b'\\"', b"\\\\", b"&#39;", b"&amp;", b";;"),
    ),
    Reader(
        "times",
        "interactions.csv",
        tuple(
            f"user_id,item_id,timestamp\nu,a,{one}\nu,b,{two}\n".encode()
            for one, two in (
                ("2019-10-01 00:00:00 UTC", "2019-10-01 00:01:00.1234567 UTC"),
                ("2014/7/1", "2014/07/01 9:05"),
                ("31/07/2014", "01/07/2014 10:00"),
                ("1.7.2014", "2014-07-01T00:00:00+02:00"),
            )
        ),
        _check_any,
        (("items.csv", _SMALL_ITEMS),),
        (b"UTC", b"/", b".", b"T", b"+01:00", b"99", b"0"),
    ),
    Reader(
        "histories JSONL",
        "histories.jsonl",
        (
            b'["a", 7]\n{"user": "u", "history": ["a", "b"]}\n',
            b'{"user_id": null, "history": []}\n',
        ),
        _check_histories,
    ),
    Reader(
        "histories CSV",
        "histories.csv",
        (
            b"user_id,item_id\nu,a\nu,b\n",
            b"item_id\na\n",
            b"Customer;SKU;date\nu;a;2024-1-2\n",
        ),
        _check_histories,
    ),
    Reader(
        "histories Parquet",
        "histories.parquet",
        (_parquet({"user": ["u", "v"], "sku": [1, 2], "time": [3.5, 1.0]}),),
        _check_histories,
    ),
    Reader("new items CSV", "new.csv", (ITEMS_CSV, *_DIALECTS), _check_new_items),
    Reader("new items JSONL", "new.jsonl", (ITEMS_JSONL,), _check_new_items),
    Reader(
        "P5 sequences",
        "sequential_data.txt",
        (b"1 2 1 3\n2 3 3\n",),
        _check_any,
        (("datamaps.json", _MAPS), ("meta.json.gz", gzip.compress(_META))),
    ),
    Reader(
        "P5 datamaps",
        "datamaps.json",
        (_MAPS,),
        _check_any,
        (("sequential_data.txt", b"1 2\n"), ("meta.json.gz", gzip.compress(_META))),
    ),
    Reader("RecBole .item", "s.item", (_ITEM,), _check_recbole, (("s.inter", _INTER),)),
    Reader(
        "RecBole .inter", "s.inter", (_INTER,), _check_recbole, (("s.item", _ITEM),)
    ),
    Reader(
        "MovieLens .dat",
        "movies.dat",
        (b"a::Film (1999)::Drama|War\nb::F\xe9e::(no genres listed)\n",),
        _check_movielens,
        (("ratings.dat", b"u1::a::5::978300760\nu1::b::3::978302109\n"),),
        (b"::",),
    ),
    Reader(
        "MovieLens u.item",
        "u.item",
        (b"a|Film (1999)|1|||" + b"|".join([b"0", b"1"] * 9 + [b"0"]) + b"\n",),
        _check_movielens,
        (("u.data", b"1\ta\t5\t978300760\n"),),
        (b"|", b"|" * 19),
    ),
    Reader(
        "MovieLens u.data",
        "u.data",
        (b"1\ta\t5\t978300760\n2\tb\t3\t978302109\n",),
        _check_movielens,
        (
            (
                "u.item",
                b"".join(
                    i + b"|F||||" + b"|".join([b"0"] * 19) + b"\n" for i in (b"a", b"b")
                ),
            ),
        ),
    ),
    Reader(
        "RecBole split",
        "s.valid.inter",
        (_INTER,),
        _check_recbole,
        (("s.item", _ITEM), ("s.train.inter", _INTER), ("s.test.inter", _INTER)),
    ),
    Reader(
        "Amazon reviews of 2018",
        "Beauty_5.json",
        (_REVIEW_2018,),
        _check_any,
        (("meta_Beauty.json", _META_2018),),
    ),
    Reader(
        "Amazon metadata of 2018",
        "meta_Beauty.json",
        (_META_2018,),
        _check_any,
        (("Beauty_5.json", _REVIEW_2018),),
        (b"getTime", b'"$1,299.00"', b"null", b"[[]]", b'"asin": "B1"'),
    ),
    Reader(
        "Amazon's CSV of 2023",
        "Beauty.csv",
        (
            b"user_id,parent_asin,rating,timestamp,history\n"
            b"U1,B1,5.0,1000,\nU1,B2,4.0,2000,B1\n",
        ),
        _check_any,
        (("meta_Beauty.jsonl", _META_2023),),
    ),
    Reader(
        "Amazon metadata of 2023",
        "meta_Beauty.jsonl",
        (_META_2023,),
        _check_any,
        (("Beauty.csv", b"user_id,parent_asin,rating,timestamp\nU1,B1,5.0,1000\n"),),
        (b'"parent_asin": "B1"', b"null", b"getTime", b'"$1,299.00"', b"[[]]"),
    ),
    Reader(
        "Amazon reviews",
        "reviews.json.gz",
        (_REVIEW,),
        _plain(_check_reviews, "reviews.json.gz"),
    ),
    Reader(
        "Amazon metadata",
        "meta.json.gz",
        (_META,),
        _plain(_check_metadata, "meta.json.gz"),
        tokens=(b"'asin': 'B2'", b"__import__('os')", b"[" * 40, b"\\d", b"&lt;"),
    ),
    Reader(
        "Amazon's gzip itself",
        "reviews.json.gz",
        (_gzip(_REVIEW * 40),),
        _check_reviews,
    ),
    Reader(
        "Semantic ID JSON",
        "codes.json",
        (
            b'{"a": [1, 2, 3], "b": [0, 0, 255], "zz": [9, 9, 9]}',
            b'{"a": ["<a_1>", "<b_2>"], "b": ["<a_0>", "<b_7>"]}',
            b'{"a": "13 10 8", "c": "1 2 3"}',
            b'[{"item_id": "a", "codes": [1, 2]}, {"item_id": "b", "codes": [3, 4]}]',
        ),
        _check_codes,
        tokens=(b"<a_", b"_1>", b'"item_id"', b"1.0", b"[]"),
    ),
    Reader(
        "ready-made .npy",
        "vectors.npy",
        (
            _npy(np.arange(1.0, 13.0).reshape(3, 4)),
            _npy(np.ones((3, 2), np.float16)),
            _npy(np.array([{}, 1, "x"], object), allow_pickle=True),
        ),
        _check_ready_made,
        tokens=(b"'descr'", b"'|O'", b"(3, 4)", b"(99999999999, 4)", b"True", b"<f8"),
    ),
    Reader(
        "gin files",
        "run.gin",
        _GIN,
        _check_gin,
        tokens=(
            b"%SEED",
            b"@",
            b"import ",
            b"include 'run.gin'",
            b"include '../../../../etc/passwd'",
            b"()",
            b"\\\n",
            b"    ",
            b"loop.LoopConfig.",
        ),
    ),
)
