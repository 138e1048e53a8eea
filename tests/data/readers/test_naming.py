"""Columns are found under the names that shops give them, and it is said."""

import pytest
from shops import write

from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError


def read(folder, items, interactions, **config):
    write(folder / "items.csv", items)
    write(folder / "interactions.csv", interactions)
    return FilesConfig(**config).read(folder)


def test_usual_synonyms_are_taken_and_said(tmp_path):
    shop = read(
        tmp_path,
        "sku,Product Title,vendor,price,category,colour\nx,Soap,Dove,2.5,Bath,red\n",
        "id,customerID,SKU,Event Time\n1,u,x,7\n",
    )
    assert shop.items.to_pylist() == [
        {
            "item_id": "x",
            "title": "Soap",
            "brand": "Dove",
            "price": 2.5,
            "categories": [["Bath"]],
            "colour": "red",
        }
    ]
    assert shop.interactions.to_pylist() == [
        {"user_id": "u", "item_id": "x", "timestamp": 7.0}
    ]
    assert shop.notes == ()
    assert shop.columns == (
        "items.csv: item_id from 'sku', title from 'Product Title', brand from "
        "'vendor', categories from 'category', price from 'price'",
        "interactions.csv: user_id from 'customerID', item_id from 'SKU', "
        "timestamp from 'Event Time'",
    )


@pytest.mark.parametrize(
    ("user", "item", "time"),
    [
        ("user_id", "item_id", "timestamp"),
        ("reviewerID", "asin", "unixReviewTime"),
        ("user_id", "parent_asin", "timestamp"),
        ("userId", "movieId", "Timestamp"),
        ("visitorid", "itemid", "event_time"),
        ("customer_id", "article_id", "t_dat"),
        ("User", "Product ID", "created_at"),
        ("\ufeffUSER_ID", "ITEM-ID", "Date"),
        ("CustomerID", "StockCode", "InvoiceDate"),
        ("customer_unique_id", "product_id", "order_purchase_timestamp"),
        ("username", "product_id", "date"),
        ("household_key", "PRODUCT_ID", "transaction_date"),
        ("user_id", "business_id", "date"),
        ("user_id", "book_id", "date_added"),
        ("user_pseudo_id", "anime_id", "event_timestamp"),
        ("player_id", "Artikelnummer", "event_ts"),
        ("reader_id", "isbn13", "date_read"),
    ],
)
def test_events_columns_of_known_data_sets(tmp_path, user, item, time):
    shop = read(
        tmp_path,
        f"{item},name\nx,Soap\n".replace("\ufeff", ""),
        f"{user},{item},{time}\nu,x,9\n",
    )
    assert shop.interactions.to_pylist() == [
        {"user_id": "u", "item_id": "x", "timestamp": 9.0}
    ]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_columns_without_a_name_are_left_out(tmp_path, name):
    shop = read(
        tmp_path,
        f"{name},item_id,title\n0,x,Soap\n",
        f"{name},user_id,item_id\n0,u,x\n",
    )
    assert len(shop.items.column_names) == 5
    assert any("without a name" in note for note in shop.notes)


def test_a_usual_name_goes_before_a_synonym(tmp_path):
    shop = read(
        tmp_path,
        "id,item_id,name,title\n1,x,Not this,Soap\n",
        "user_id,item_id,time,timestamp\nu,x,1,2\n",
    )
    assert shop.items["title"].to_pylist() == ["Soap"]
    assert shop.items["name"].to_pylist() == ["Not this"]
    assert shop.interactions["timestamp"].to_pylist() == [2.0]


def test_of_several_identifiers_one_that_both_files_have_counts(tmp_path):
    shop = read(
        tmp_path,
        "product_code,article_id,prod_name,product_type_name\n7,70,Top,Vest\n7,71,X,\n",
        "customer_id,article_id,t_dat\nu,71,2018-09-20\n",
    )
    assert shop.items["item_id"].to_pylist() == ["70", "71"]
    assert shop.items["title"].to_pylist() == ["Top", "X"]
    assert shop.items["categories"].to_pylist() == [[["Vest"]], []]


def test_a_thing_s_name_before_a_part_s_is_understood(tmp_path):
    items = "ISBN,Book-Title,Book-Author,title_length,description\nx,Soap,Dove,4,long\n"
    row = read(tmp_path, items, "user_id,ISBN\nu,x\n").items.to_pylist()[0]
    assert (row["title"], row["brand"], row["description"]) == ("Soap", "Dove", "long")
    items = "sku,Description\nx,WHITE LANTERN\n"  # nothing better
    shop = read(tmp_path, items, "user_id,sku\nu,x\n")
    assert shop.items["title"].to_pylist() == ["WHITE LANTERN"]


def test_a_date_and_a_time_are_one_time(tmp_path):
    rows = "u,x,2016-10-30,10:05:34\nu,x,2016-10-30,9:58\nu,x,2016-10-29,23:00\n"
    shop = read(tmp_path, "item_id\nx\n", "user_id,item_id,Date,Time\n" + rows)
    times = shop.interactions["timestamp"].to_numpy()
    assert (times - times[2]).tolist() == [39_934.0, 39_480.0, 0.0]
    assert "interactions.csv: Date and Time are one time" in shop.notes
    rows = "u,x,2016-10-30,7\n"  # no time of day
    shop = read(tmp_path, "item_id\nx\n", "user_id,item_id,Date,Time\n" + rows)
    assert shop.interactions["timestamp"].to_pylist() == [7.0]


def test_a_column_that_is_named_plays_no_other_part(tmp_path):
    shop = read(
        tmp_path,
        "item_id,name,product\nx,Not this,Soap\n",
        "user_id,item_id\nu,x\n",
        title="product",
    )
    assert shop.items["title"].to_pylist() == ["Soap"]
    with pytest.raises(InputError, match="no column 'titel'"):
        FilesConfig(title="titel").read(tmp_path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("bought_on", "2014-07-01"),
        ("moment", "1404172800"),
        ("timestmp", "3"),
        ("LAST_CHANGE_TIME", "3"),
    ],
)
def test_a_column_of_times_is_not_passed_over_in_silence(tmp_path, column, values):
    shop = read(
        tmp_path,
        "item_id,tittle\nx,Soap\n",
        f"user_id,item_id,{column}\nu,x,{values}\n",
    )
    warnings = [note for note in shop.notes if note.startswith("WARNING: ")]
    assert len(warnings) == 2
    assert "--gin.files.FilesConfig.title=tittle" in warnings[0]
    assert f"--gin.files.FilesConfig.timestamp={column}" in warnings[1]


def test_a_missing_column_names_the_flag_and_the_near_miss(tmp_path):
    with pytest.raises(InputError, match="--gin.files.FilesConfig.user_id=custmer_id"):
        read(tmp_path, "item_id\nx\n", "custmer_id,item_id\nu,x\n")
    with pytest.raises(InputError, match="--gin.files.FilesConfig.user_id=NAME"):
        read(tmp_path, "item_id\nx\n", "who,item_id\nu,x\n")
