"""The Amazon reader and builder, on small files made here in the raw formats."""

import concurrent.futures
import gzip
import http.server
import json
import math
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.data.readers import amazon, amazon_tfds
from tiger_jax.data.readers.amazon import AmazonConfig
from tiger_jax.data.readers.amazon_tfds import Amazon2014, download_amazon
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.errors import InputError

METADATA_LINES = (
    # Another item's line comes first, and is none of ours.
    "{'asin': 'B999', 'title': 'Not in the 5-core', 'price': 1.0}",
    "{'asin': 'B002', 'title': 'Nail Polish &amp; Remover', 'price': 4.99, "
    "'brand': 'Lumi', 'categories': [['Beauty', 'Nails', 'Polish'], ['Gifts']], "
    "'related': {'also_bought': ['B001']}, 'salesRank': {'Beauty': 12}}",
    # Broken quoting, as in the real files.
    "{'asin': 'B001', 'title': 'The 'Best' Cream', 'categories': [['Beauty']]}",
    # Calls are no literals.
    "{'asin': 'B003', 'title': __import__('os').getcwd()}",
    # The first line about an item counts; a negative price is none.
    "{'asin': 'B004', 'description': 'Soap\\d', 'price': -1.0, 'categories': 'x'}",
    "{'asin': 'B004', 'title': 'Second line'}",
)
REVIEWS = (  # (user, item, rating, time): grouped by item, as in the real files
    ("U1", "B001", 5.0, 300),
    ("U2", "B001", 1.0, 200),
    ("U1", "B002", 4.0, 100),
    ("U2", "B002", 3.0, 200),
    ("U1", "B004", 2.0, 300),
    ("U3", "B003", 5.0, 50),
    ("U1", "B004", 5.0, 300),  # the same again: kept
    ("U3", "B005", 5.0, 400),
)


def write_gzip(path: Path, lines: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def review_lines(reviews=REVIEWS) -> list[str]:
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    return [
        json.dumps({**dict(zip(keys, row, strict=True)), "reviewText": "Fine."})
        for row in reviews
    ]


def write_category(folder: Path, title: str = "Beauty") -> None:
    write_gzip(folder / f"reviews_{title}_5.json.gz", review_lines())
    write_gzip(folder / f"meta_{title}.json.gz", list(METADATA_LINES))


class _BuilderTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own test of a builder, fed with files written for it."""

    DATASET_CLASS = Amazon2014
    SPLITS = {"items": 5}
    # The files' checksums are recorded where they are downloaded, not shipped.
    SKIP_CHECKSUMS = True
    __test__ = False

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.EXAMPLE_DIR = cls.folder.name
        cls.write_files(Path(cls.folder.name))
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.folder.cleanup()


class TestBuilderWithManualFiles(_BuilderTest):
    __test__ = True

    @classmethod
    def write_files(cls, folder):
        for title in amazon.CATEGORIES.values():
            write_category(folder, title)


class TestBuilderWithDownloads(_BuilderTest):
    __test__ = True
    DL_DOWNLOAD_RESULT = {"reviews": "first.gz", "metadata": "second.gz"}
    BUILDER_CONFIG_NAMES_TO_TEST = ["toys"]

    @classmethod
    def write_files(cls, folder):
        write_gzip(folder / "first.gz", review_lines())
        write_gzip(folder / "second.gz", list(METADATA_LINES))


@pytest.fixture
def raw_folder(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    write_category(folder)
    return folder


def test_items_are_in_order_of_first_review(raw_folder):
    shop = AmazonConfig().read(raw_folder)
    assert shop.items.to_pylist() == [
        {"item_id": "B001", "title": "", "brand": "", "price": None, "categories": []},
        {
            "item_id": "B002",
            "title": "Nail Polish & Remover",
            "brand": "Lumi",
            "price": 4.99,
            "categories": [["Beauty", "Nails", "Polish"], ["Gifts"]],
        },
        {"item_id": "B004", "title": "", "brand": "", "price": None, "categories": []},
        {"item_id": "B003", "title": "", "brand": "", "price": None, "categories": []},
        {"item_id": "B005", "title": "", "brand": "", "price": None, "categories": []},
    ]
    assert shop.notes == (
        "meta_Beauty.json.gz: 2 lines can't be read and are left out (the first at 3, "
        "4)",
        "of 5 items, 3 have no metadata; in all, 4 no title, 4 no brand, 4 no price, 4 "
        "no categories",
    )


def test_interactions_are_sorted_by_time_then_row(raw_folder):
    shop = AmazonConfig().read(raw_folder)
    expected = sorted(REVIEWS, key=lambda review: review[3])  # stable
    rows = shop.interactions.to_pylist()
    assert [(r["user_id"], r["item_id"], r["timestamp"]) for r in rows] == [
        (user, item, time) for user, item, _, time in expected
    ]


def test_builder_gives_what_the_reader_gives(raw_folder, tmp_path):
    shop = AmazonConfig().read(raw_folder)
    builder = Amazon2014(config="beauty", data_dir=tmp_path / "tfds")
    config = tfds.download.DownloadConfig(manual_dir=raw_folder)
    builder.download_and_prepare(download_config=config)
    examples = list(tfds.as_numpy(builder.as_dataset(split="items")))
    for example, item in zip(examples, shop.items.to_pylist(), strict=True):
        assert example["item_id"].decode() == item["item_id"]
        assert example["title"].decode() == item["title"]
        price = np.float32(np.nan if item["price"] is None else item["price"])
        np.testing.assert_equal(example["price"], price)
    num_reviews = sum(len(example["reviews"]["row"]) for example in examples)
    assert num_reviews == shop.interactions.num_rows
    assert builder.info.metadata["skipped_lines"] == 2


def test_builder_takes_no_other_folders_items(raw_folder, tmp_path):
    def prepare():
        builder = Amazon2014(config="beauty", data_dir=tmp_path / "tfds")
        config = tfds.download.DownloadConfig(manual_dir=raw_folder)
        builder.download_and_prepare(download_config=config)
        return builder.info.splits["items"].num_examples

    assert prepare() == prepare() == 5
    write_gzip(raw_folder / "reviews_Beauty_5.json.gz", review_lines(REVIEWS[:1]))
    with pytest.raises(InputError, match="prepared from other files .* data_dir"):
        prepare()


def test_folders_read_at_once_keep_apart(tmp_path):
    folders = []
    for name in "CD":
        folder = tmp_path / name
        folder.mkdir()
        reviews = [(user, name + item, 5.0, time) for user, item, _, time in REVIEWS]
        write_gzip(folder / "reviews_Beauty_5.json.gz", review_lines(reviews))
        write_gzip(folder / "meta_Beauty.json.gz", list(METADATA_LINES))
        folders += [folder] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        shops = list(pool.map(AmazonConfig().read, folders))
    for folder, shop in zip(folders, shops, strict=True):
        assert all(i.startswith(folder.name) for i in shop.items["item_id"].to_pylist())
    assert not list(tmp_path.glob("*/*tfds*"))  # and nothing is kept for other runs


@pytest.fixture
def host(raw_folder, monkeypatch):
    """Serves the raw folder on this machine in place of the public host."""
    handler = partial(_QuietHandler, directory=raw_folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(
            amazon_tfds, "HOST", f"http://127.0.0.1:{server.server_port}/"
        )
        yield
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.usefixtures("host")
def test_first_download_fixes_the_checksums(tmp_path):
    data_dir = tmp_path / "tfds"
    shop = download_amazon("beauty", data_dir=data_dir)
    assert shop.interactions.num_rows == len(REVIEWS)
    (record,) = data_dir.rglob("amazon2014_checksums.json")
    assert len(json.loads(record.read_text())) == 2

    (downloaded,) = (data_dir / "downloads").rglob("*reviews_Beauty*.gz")
    write_gzip(downloaded, review_lines(REVIEWS[:3]))
    with pytest.raises(InputError, match="SHA-256 .* first downloaded"):
        download_amazon("beauty", data_dir=data_dir)


@pytest.mark.usefixtures("host")
def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    download_amazon("beauty", data_dir=tmp_path / "tfds")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_small_file_that_never_ends_is_refused(tmp_path):
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(200):
            file.write(b"[" * 2**20)
    with pytest.raises(InputError, match="more than .* times its .* bytes"):
        amazon.read_metadata(path, {"B001"})
    with gzip.open(path, "wb", 1) as file:
        file.write(b"\n" * 1_100_000)
    with pytest.raises(InputError, match="more than 1,000,000 empty lines"):
        amazon.read_metadata(path, {"B001"})


def test_what_cannot_be_downloaded_says_what_to_do(raw_folder, tmp_path, monkeypatch):
    # The download is tried again and again; only the waiting between is left out.
    monkeypatch.setattr(urllib3.util.Retry, "get_backoff_time", lambda self: 0)
    (raw_folder / "meta_Beauty.json.gz").unlink()
    with pytest.raises(InputError, match="could not be fetched .* by hand"):
        download_amazon("beauty", data_dir=tmp_path / "tfds")


def test_missing_files_and_unknown_names_are_refused(tmp_path):
    """A folder without the files is refused, and an unknown name."""
    with pytest.raises(InputError, match=r"reviews_NAME_5\.json\.gz"):
        AmazonConfig().read(tmp_path)
    with pytest.raises(InputError, match="choose beauty, sports, toys"):
        download_amazon("books", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"])
def test_a_damaged_file_is_refused(raw_folder, name):
    path = raw_folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=f"{name} .*(in the middle|whole gzip)"):
        AmazonConfig().read(raw_folder)
    path.write_bytes(b"<html>Not found</html>")
    with pytest.raises(InputError, match=f"{name} is not a whole gzip file"):
        AmazonConfig().read(raw_folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not valid JSON"),
        ('{"asin": "B1"}', "line 2: a review needs reviewerID"),
        ("[1]", "line 2: a review needs reviewerID"),
        (
            '{"reviewerID": "", "asin": "B", "overall": 1, "unixReviewTime": 2}',
            "line 2: reviewerID is ''",
        ),
        (
            '{"reviewerID": "U", "asin": "B", "overall": 1, "unixReviewTime": NaN}',
            "line 2: unixReviewTime is 'nan'",
        ),
        ("[" * 100_000, "line 2 is not valid JSON"),
        ("x" * (amazon.MAX_LINE_BYTES + 5), "line 2 is longer than"),
    ],
)
def test_a_bad_review_names_its_line(tmp_path, line, message):
    path = tmp_path / "reviews.json.gz"
    write_gzip(path, [review_lines()[0], line])
    with pytest.raises(InputError, match=message):
        amazon.read_reviews(path)


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 50_000,
        "{'asin': " + "[" * 500 + "]" * 500 + "}",
        "-" * 200_000 + "1",
        "{'asin': 1" + "+1" * 100_000 + "}",
        "{'asin': " + "9" * 100_000 + "}",
        "{'asin': 'B1', 'title': 10**10**10}",
        "{**{}}",
        "{'asin': 'B1'}; print(1)",
        "{[]: 1}",
        "{'asin': 'B1'\x00}",
        "lambda: 0",
    ],
)
def test_hostile_metadata_is_counted_not_run(tmp_path, hostile):
    path = tmp_path / "meta.json.gz"
    write_gzip(path, [hostile, "{'asin': 'B1', 'title': 'Good'}"])
    found, skipped = amazon.read_metadata(path, {"B1"})
    assert found == {"B1": found["B1"]}
    assert found["B1"].title == "Good"
    assert skipped == [1]


def test_a_line_without_end_is_skipped_without_reading_it_whole(tmp_path):
    path = tmp_path / "meta.json.gz"
    long = "{'asin': 'B1', 'title': '" + "x" * (3 * amazon.MAX_LINE_BYTES) + "'}"
    write_gzip(path, [long, "{'asin': 'B1', 'title': 'Good \\ud800'}"])
    found, skipped = amazon.read_metadata(path, {"B1"})
    assert found["B1"].title == "Good ?"
    assert skipped == [1]


META_2018 = {
    "category": ["Beauty", "Hair &amp; Skin"],
    "title": "Nail Polish",
    "brand": "Lumi",
    "price": "$1,017.02",
    "rank": [">#1"],
    "asin": "B002",
}
META_2023 = {
    "main_category": "All Beauty",
    "title": "Nail Polish",
    "price": 1017.02,
    "store": "Lumi",
    "categories": ["Beauty", "Hair &amp; Skin"],
    "details": {"Brand": "x"},
    "parent_asin": "B002",
    "bought_together": None,
}
OTHER_FORMS = {
    "title": "var aPageStart = (new Date()).getTime();",
    "brand": "",
    "price": "$4.99 - $9.99",
    "categories": [],
    "category": [],
}


def write_year(folder: Path, year: int, form: str) -> None:
    """Writes a category under the names, and in the forms, of a year."""
    meta, key = (META_2018, "asin") if year < 2023 else (META_2023, "parent_asin")
    metas = [json.dumps(m) for m in (meta, {**OTHER_FORMS, key: "B001"})]
    ending = "json" if year < 2023 else "jsonl"
    write_gzip(folder / f"meta_All_Beauty.{ending}.gz", metas)
    rows = [(u, i, r, t) for u, i, r, t in REVIEWS if i in ("B001", "B002")]
    if form in ("All_Beauty_5.json", "reviews_All_Beauty_5.json"):
        write_gzip(folder / f"{form}.gz", review_lines(rows))
        return
    if form == "All_Beauty.jsonl":
        keys = ("user_id", "parent_asin", "rating", "timestamp")
        lines = [dict(zip(keys, (*r[:3], r[3] * 1000), strict=True)) for r in rows]
        write_gzip(
            folder / f"{form}.gz", [json.dumps(l | {"asin": "x"}) for l in lines]
        )
        return
    header = "user_id,parent_asin,rating,timestamp,history"
    lines = [f"{u},{i},{r},{t * 1000},B001 B002" for u, i, r, t in rows]
    if form == "All_Beauty.csv":
        write_gzip(folder / f"{form}.gz", [header, *lines])
        return
    for part, some in zip(("train", "valid", "test"), (2, 1, 1), strict=True):
        taken, lines = lines[:some], lines[some:]
        write_gzip(folder / form.format(part), [header, *taken])


@pytest.mark.parametrize(
    ("year", "form"),
    [
        (2018, "All_Beauty_5.json"),
        (2014, "reviews_All_Beauty_5.json"),  # with metadata of 2018
        (2023, "All_Beauty.csv"),
        (2023, "All_Beauty.{}.csv.gz"),
        (2023, "All_Beauty.jsonl"),
    ],
)
def test_later_years_are_read_as_they_come(tmp_path, year, form):
    write_year(tmp_path, year, form)
    source = find_source(tmp_path)
    assert source.kind == "amazon"
    shop = source.read()
    assert shop.name == f"amazon{year}_all_beauty"
    assert shop.items.to_pylist() == [
        {"item_id": "B001", "title": "", "brand": "", "price": None, "categories": []},
        {
            "item_id": "B002",
            "title": "Nail Polish",
            "brand": "Lumi",
            "price": 1017.02,
            "categories": [["Beauty", "Hair & Skin"]],
        },
    ]
    assert shop.interactions["timestamp"].to_pylist() == [100, 200, 200, 300]
    assert shop.interactions["item_id"][0].as_py() == "B002"
    assert shop.notes == (
        "of 2 items, 0 have no metadata; in all, 1 no title, 1 no brand, 1 no price, 1 "
        "no categories",
    )


def test_ratings_alone_are_told_from_reviews(tmp_path):
    (tmp_path / "meta_Beauty.json").write_text('{"asin": "B1", "title": "x"}\n')
    rows = "B1,U1,5.0,1424304000\nB1,U2,4.0,1424304001\n"
    (tmp_path / "Beauty.csv").write_text(rows)
    with pytest.raises(InputError, match="holds ratings alone; bring .* NAME_5.json"):
        AmazonConfig().read(tmp_path)


def test_a_byte_order_mark_may_stand_first(tmp_path):
    (tmp_path / "reviews_Beauty_5.json").write_bytes(
        "\n".join(["\ufeff" + review_lines()[0], *review_lines()[1:]]).encode()
    )
    lines = (json.dumps({"asin": f"B00{n}", "title": "T"}) for n in range(1, 6))
    (tmp_path / "meta_Beauty.json").write_bytes(("\ufeff" + "\n".join(lines)).encode())
    assert AmazonConfig().read(tmp_path).items["title"].to_pylist() == ["T"] * 5


def test_metadata_in_strict_json_may_have_nulls(tmp_path):
    write_gzip(tmp_path / "reviews_Beauty_5.json.gz", review_lines())
    metas = [{"asin": f"B00{n}", "title": "T", "imUrl": None} for n in range(1, 6)]
    write_gzip(tmp_path / "meta_Beauty.json.gz", list(map(json.dumps, metas)))
    assert AmazonConfig().read(tmp_path).items["title"].to_pylist() == ["T"] * 5


def test_metadata_of_which_most_is_unreadable_is_refused(tmp_path):
    path = tmp_path / "meta.json.gz"
    write_gzip(path, ["{'asin': 'B1'}", *["{broken"] * 11])
    with pytest.raises(InputError, match="11 lines can't be read, 1 can .*at 2, 3, 4"):
        amazon.read_metadata(path, {"B1"})


_literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(fields=st.dictionaries(st.text(), _literals), price=_literals, paths=_literals)
def test_any_literal_gives_well_formed_metadata(fields, price, paths):
    text = repr({**fields, "asin": "B1", "price": price, "categories": paths})
    if "inf" not in text and "nan" not in text:  # these two repr as names
        parsed = amazon.parse_line(text)
        assert parsed is not None
        about = amazon._as_metadata(parsed)
        assert math.isnan(about.price) or 0 <= about.price < 2**53
        json.dumps(about.categories)
        assert np.array(about.title).dtype.kind == "U"


@given(st.text())
def test_any_text_is_a_dictionary_or_refused(text):
    assert isinstance(amazon.parse_line(text), dict | None)
