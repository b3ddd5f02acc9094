"""Tables as shops' programs export them, small, each with what `towers init` should make of it.

The formats are those of the real programs: names of columns, separators, dates, numbers, encodings, and what else these
programs write. The content is the same small shop throughout.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

Write = Callable[[Path], object]

PRODUCTS = [
    ("85123A", "Glass heart, white", 1234.5, "Decoration", 12),
    ("71053", "Metal lantern", 3.39, "Lighting", 3),
    ("84406B", "Cup with cat", 2.75, "Kitchen", 0),
    ("22752", "Set of seven boxes", 7.65, "Storage", 41),
    ("21730", "Glass star holder", 4.25, "Decoration", 7),
]
CUSTOMERS = ["17850", "13047", "12583", "15291", "14688"]
START = dt.datetime(2023, 11, 14, 9, 30, 0)  # noqa: DTZ001 (as exports have them)


@dataclass(frozen=True)
class Order:
    """One line of an order."""

    number: int
    customer: str
    product: int
    quantity: int
    when: dt.datetime

    @property
    def sku(self) -> str:
        return PRODUCTS[self.product][0]

    @property
    def title(self) -> str:
        return PRODUCTS[self.product][1]

    @property
    def price(self) -> float:
        return PRODUCTS[self.product][2]


ORDERS = [
    Order(536365 + place // 2, CUSTOMERS[place // 2 % 5], (place * 3 + place // 4) % 5, place % 4 + 1, START)
    for place in range(20)
]
ORDERS = [
    Order(one.number, one.customer, one.product, one.quantity, START + dt.timedelta(days=3 * place, minutes=17 * place))
    for place, one in enumerate(ORDERS)
]


@dataclass(frozen=True)
class Export:
    """One shop's tables.

    Attributes:
        name: Which program wrote them.
        files: What writes each table: `interactions`, and perhaps `items` and `users`, by the path's ending.
        roles: Columns by setting that `init` should find.
        kinds: Kinds by column of the items' table that should be read; others should be left out.
        said: Parts of what should stand on the terminal.
        refused: Parts of the errors that end `init` instead.
        flags: What the person adds.
    """

    name: str
    files: Mapping[str, Write]
    roles: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    said: Sequence[str] = ()
    refused: Sequence[str] = ()
    flags: Mapping[str, str] = field(default_factory=dict)


def _quoted(cell: object, separator: str) -> str:
    text = str(cell)
    return '"' + text.replace('"', '""') + '"' if separator in text or '"' in text or "\n" in text else text


def csv(
    header: str,
    rows: Sequence[Sequence[object]],
    separator: str = ",",
    encoding: str = "utf-8",
    before: str = "",
    end: str = "\r\n",
    after: str = "",
) -> Write:
    """Return what writes a CSV file."""
    lines = [header, *(separator.join(_quoted(cell, separator) for cell in row) for row in rows)]
    text = before + end.join(lines) + end + after
    return lambda path: path.write_bytes(text.encode(encoding))


def european(number: float, group: str = ".") -> str:
    """Return a number as Excel writes it in Germany, or with blanks in France."""
    return f"{number:,.2f}".replace(",", "_").replace(".", ",").replace("_", group)


def excel_us() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%m/%d/%Y}", o.quantity, f"${o.price:,.2f}") for o in ORDERS]
    items = [(sku, title, f"${price:,.2f}", group) for sku, title, price, group, _ in PRODUCTS * 1]
    return Export(
        "Excel, United States",
        {
            "interactions.csv": csv("Customer ID,SKU,Order Date,Quantity,Unit Price", orders),
            "items.csv": csv("SKU,Product Name,List Price,Category", items),
        },
        {"user_id": "Customer ID", "item_id": "SKU", "timestamp": "Order Date", "time_format": "mdy"},
        {"Product Name": "text", "List Price": "number", "Category": "category"},
    )


def excel_germany(encoding: str = "utf-8-sig") -> Export:
    orders = [
        (o.customer, o.sku, f"{o.when:%d.%m.%Y %H:%M}", -1 if not n else o.quantity) for n, o in enumerate(ORDERS)
    ]
    items = [(sku, title, f"{european(price)} €", group, stock) for sku, title, price, group, stock in PRODUCTS]
    files = {
        "interactions.csv": csv("Kunden-Nr.;Artikelnummer;Kaufdatum;Menge", orders, ";", after=";;;\r\n"),
        "items.csv": csv("Artikelnummer;Bezeichnung;Stückpreis;Warengruppe;Lagerbestand", items, ";", encoding),
    }
    if encoding != "utf-8-sig":
        return Export("Excel, Germany, in its old encoding", files, refused=["is not UTF-8", "save the file as UTF-8"])
    return Export(
        "Excel, Germany",
        files,
        {"user_id": "Kunden-Nr.", "item_id": "Artikelnummer", "timestamp": "Kaufdatum", "time_format": "dmy"},
        {"Bezeichnung": "text", "Stückpreis": "number", "Warengruppe": "category"},
        said=[
            "Lagerbestand left out: a LEAK by its name: today's stock",
            "1 interaction with a negative 'Menge' (returns?) count",
            "1 row without an id",
        ],
    )


def excel_france() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%d/%m/%Y}", o.quantity) for o in ORDERS]
    items = [(sku, title, f"{european(price, chr(0x202F))} €", group) for sku, title, price, group, _ in PRODUCTS]
    return Export(
        "Excel, France",
        {
            "interactions.csv": csv("N° client;Réf. article;Date de commande;Qté", orders, ";", "utf-8-sig"),
            "items.csv": csv("Réf. article;Désignation;Prix TTC;Rayon", items, ";", "utf-8-sig"),
        },
        {"user_id": "N° client", "item_id": "Réf. article", "timestamp": "Date de commande", "time_format": "dmy"},
        {"Désignation": "text", "Prix TTC": "number", "Rayon": "category"},
    )


def excel_spain() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%d/%m/%Y %H:%M}", o.quantity) for o in ORDERS]
    return Export(
        "Excel, Spain, with the line that says the separator",
        {
            "interactions.csv": csv(
                "Código cliente;Código producto;Fecha de compra;Cantidad", orders, ";", "utf-8-sig", before="sep=;\r\n"
            )
        },
        {"user_id": "Código cliente", "item_id": "Código producto", "timestamp": "Fecha de compra"},
    )


def excel_unicode_text() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%m/%d/%Y}") for o in ORDERS]
    return Export(
        "Excel, Unicode text",
        {"interactions.txt": csv("Customer ID\tSKU\tOrder Date", orders, "\t", "utf-16")},
        refused=["the text is UTF-16, expected UTF-8; save it as CSV UTF-8"],
    )


def excel_japan() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%Y/%m/%d}", o.quantity) for o in ORDERS]
    names = ["ガラスの星", "金属ランタン", "猫のカップ", "箱七個セット", "白いハート飾り"]
    items = [(one[0], name, one[3]) for one, name in zip(PRODUCTS, names, strict=True)]
    return Export(
        "Excel, Japan",
        {
            "interactions.csv": csv("顧客ID,商品コード,注文日,数量", orders, ",", "utf-8-sig"),
            "items.csv": csv("商品コード,商品名,分類", items, ",", "utf-8-sig"),
        },
        {"user_id": "顧客ID", "item_id": "商品コード", "timestamp": "注文日"},
        {"商品名": "text", "分類": "category"},
    )


def shopify() -> Export:
    header = (
        "Name,Email,Financial Status,Paid at,Fulfillment Status,Fulfilled at,Accepts Marketing,Currency,Subtotal,Total,"
        "Discount Code,Shipping Method,Created at,Lineitem quantity,Lineitem name,Lineitem price,Lineitem sku,Vendor"
    )
    orders = [
        (
            f"#{o.number}",
            f"c{o.customer}@example.com",
            *(("paid", f"{o.when:%Y-%m-%d %H:%M:%S} -0500", "fulfilled") if n % 2 == 0 else ("", "", "")),
            *(("", "yes", "USD", "12.00", "14.00", "", "Standard") if n % 2 == 0 else [""] * 7),
            f"{o.when:%Y-%m-%d %H:%M:%S} -0500",
            o.quantity,
            o.title,
            o.price,
            o.sku,
            "Mine",
        )
        for n, o in enumerate(ORDERS)
    ]
    items = [
        (
            title.lower().replace(" ", "-"),
            title,
            f"<p>{title}</p> for every home",
            "Mine",
            group,
            "glass, gift",
            sku,
            0,
            stock,
            price,
        )
        for sku, title, price, group, stock in PRODUCTS
    ]
    return Export(
        "Shopify, orders and products",
        {
            "interactions.csv": csv(header, orders, end="\n"),
            "items.csv": csv(
                "Handle,Title,Body (HTML),Vendor,Type,Tags,Variant SKU,Variant Grams,Variant Inventory Qty,"
                "Variant Price",
                items,
                end="\n",
            ),
        },
        {"user_id": "Email", "item_id": "Lineitem sku", "items_item_id": "Variant SKU", "timestamp": "Created at"},
        {"Title": "text", "Body (HTML)": "text", "Type": "category", "Variant Price": "number"},
        said=["Variant Inventory Qty left out: a LEAK by its name: today's stock"],
    )


def woocommerce() -> Export:
    header = (
        "Order Number,Order Status,Order Date,Customer Note,First Name (Billing),Email (Billing),SKU,Item #,Item Name,"
        "Quantity (- Refund),Item Cost"
    )
    orders = [
        (
            o.number,
            "Completed",
            f"{o.when:%Y-%m-%d %H:%M}",
            "",
            "Ann",
            f"c{o.customer}@example.com",
            o.sku,
            n % 2 + 1,
            o.title,
            o.quantity,
            o.price,
        )
        for n, o in enumerate(ORDERS)
    ]
    items = [
        (
            700 + n,
            "simple",
            sku,
            title,
            1,
            f"{title}, made by hand",
            "taxable",
            1,
            stock,
            price,
            f"Home > {group}, Gifts",
        )
        for n, (sku, title, price, group, stock) in enumerate(PRODUCTS)
    ]
    return Export(
        "WooCommerce, orders and products",
        {
            "interactions.csv": csv(header, orders, end="\n"),
            "items.csv": csv(
                "ID,Type,SKU,Name,Published,Description,Tax status,In stock?,Stock,Regular price,Categories",
                items,
                encoding="utf-8-sig",
                end="\n",
            ),
        },
        {"user_id": "Email (Billing)", "item_id": "SKU", "timestamp": "Order Date"},
        {"Name": "text", "Description": "text", "Regular price": "number"},
        said=["Stock left out: a LEAK by its name", "In stock? left out: a LEAK by its name"],
    )


def ga4() -> Export:
    orders = [
        (
            f"{o.when:%Y%m%d}",
            int(o.when.replace(tzinfo=dt.UTC).timestamp() * 1000000.0),
            "purchase",
            f"{o.customer}.{17 * n}",
            f"{o.customer}.1",
            o.sku,
            o.title,
        )
        for n, o in enumerate(ORDERS)
    ]
    return Export(
        "BigQuery, events of Google Analytics",
        {
            "interactions.csv": csv(
                "event_date,event_timestamp,event_name,ga_session_id,user_pseudo_id,item_id,item_name", orders, end="\n"
            )
        },
        {"user_id": "user_pseudo_id", "item_id": "item_id", "timestamp": "event_timestamp"},
    )


def bigquery() -> Export:
    orders = [(o.customer, o.sku, f"{o.when:%Y-%m-%d %H:%M:%S} UTC", f"{o.price}") for o in ORDERS]
    return Export(
        "BigQuery, a table of orders",
        {"interactions.csv": csv("customer_number,product_code,order_timestamp,net_price", orders, end="\n")},
        {"user_id": "customer_number", "item_id": "product_code", "timestamp": "order_timestamp"},
    )


def spark_csv() -> Export:
    def write(folder: Path) -> None:
        folder.mkdir()
        for part, rows in enumerate((ORDERS[:7], ORDERS[7:7], ORDERS[7:])):
            lines = [(o.sku, o.customer, f"{o.when:%Y-%m-%dT%H:%M:%S}.000Z") for o in rows]
            csv("product_code,cust_no,event_ts", lines, end="\n")(folder / f"part-{part:05d}-3f2a-c000.csv")
        (folder / "_SUCCESS").touch()
        (folder / ".part-00000-3f2a-c000.csv.crc").write_bytes(b"crc\x00")

    return Export(
        "Spark, CSV in parts",
        {"interactions": write},
        {"user_id": "cust_no", "item_id": "product_code", "timestamp": "event_ts"},
    )


def spark_parquet() -> Export:
    def write(folder: Path) -> None:
        for day, rows in (("2023-11-14", ORDERS[:9]), ("2023-12-14", ORDERS[9:])):
            (folder / f"ds={day}").mkdir(parents=True)
            cells = {"customerId": [o.customer for o in rows], "sku": [o.sku for o in rows]}
            frame = pd.DataFrame({**cells, "price": [o.price for o in rows]})
            frame.to_parquet(folder / f"ds={day}" / "part-0.snappy.parquet", index=False)
        (folder / "_SUCCESS").touch()

    return Export(
        "Spark, Parquet in folders by day",
        {"interactions": write},
        {"user_id": "customerId", "item_id": "sku", "timestamp": "ds"},
        said=["'ds' is taken for timestamp by a guess"],
    )


def pandas_csv() -> Export:
    orders = [(n, f"{o.customer}.0" if n else "", o.product + 100, f"{o.when}", o.price) for n, o in enumerate(ORDERS)]
    items = [
        (n, n + 100, one[1], f"['{one[3]}', 'Gift \"{n % 2}\"']", f"[0.{n}1 0.5]") for n, one in enumerate(PRODUCTS)
    ]
    return Export(
        "pandas, with its index and ids that became fractions",
        {
            "interactions.csv": csv(",user_id,item_id,bought_at,price", orders, end="\n"),
            "items.csv": csv(",item_id,title,genres,vector", items, end="\n"),
        },
        {"user_id": "user_id", "item_id": "item_id", "timestamp": "bought_at"},
        {"title": "text", "genres": "categories", "vector": "vector"},
        said=["1 row without an id", "ids in 'user_id' written as fractions (such as 17850.0) read as whole"],
    )


def pandas_parquet() -> Export:
    frame = pd.DataFrame(
        {
            "user": [float(o.customer) if n else float("nan") for n, o in enumerate(ORDERS)],
            "product": [o.sku for o in ORDERS],
            "when": pd.to_datetime([o.when for o in ORDERS]),
            "score": [float(n % 5) for n, _ in enumerate(ORDERS)],
        },
        index=pd.Index(range(20), name="row"),
    )
    return Export(
        "pandas, Parquet with its index",
        {"interactions.parquet": lambda path: frame.set_index("user", append=True).reset_index().to_parquet(path)},
        {"user_id": "user", "item_id": "product", "timestamp": "when", "rating": "score"},
        said=["1 row without an id"],
    )


def online_retail() -> Export:
    orders = [
        (
            f"C{o.number}" if n == 3 else o.number,
            o.sku,
            o.title,
            -o.quantity if n == 3 else o.quantity,
            f"{o.when:%-m/%-d/%Y %-H:%M}",
            o.price,
            "" if n in (5, 6) else o.customer,
            "United Kingdom",
        )
        for n, o in enumerate(ORDERS)
    ]
    return Export(
        "UCI, Online Retail",
        {
            "interactions.csv": csv(
                "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country", orders
            )
        },
        {"user_id": "CustomerID", "item_id": "StockCode", "timestamp": "InvoiceDate", "time_format": "mdy"},
        said=[
            "2 rows without an id",
            "1 interaction with a negative 'Quantity' (returns?)",
            "18 interactions of 5 users",
        ],
    )


def olist() -> Export:
    orders = [
        (
            f"o{o.number}",
            f"p{o.product}",
            f"c{o.number}",
            f"u{o.customer}",
            n % 5 + 1,
            f"{o.when}",
            f"{o.when + dt.timedelta(days=9)}",
        )
        for n, o in enumerate(ORDERS)
    ]
    return Export(
        "Olist",
        {
            "interactions.csv": csv(
                '"order_id","product_id","order_customer","customer_unique_id","review_score",'
                '"order_purchase_timestamp","order_delivered_customer_date"',
                orders,
                end="\n",
            )
        },
        {
            "user_id": "customer_unique_id",
            "item_id": "product_id",
            "timestamp": "order_purchase_timestamp",
            "rating": "review_score",
        },
    )


def book_crossing() -> Export:
    rows = [(f'"{o.customer}"', f'"0345417{o.product}95"', f'"{n % 10}"') for n, o in enumerate(ORDERS)]
    text = '"User-ID";"ISBN";"Book-Rating"\r\n' + "".join(";".join(row) + "\r\n" for row in rows)
    return Export(
        "Book-Crossing",
        {"interactions.csv": lambda path: path.write_text(text)},
        {"user_id": "User-ID", "item_id": "ISBN", "rating": "Book-Rating"},
        said=["no time and no position"],
    )


def amazon_seller() -> Export:
    orders = [
        (
            f"026-{o.number}",
            f"{o.when:%Y-%m-%dT%H:%M:%S}+00:00",
            f"c{o.customer}@marketplace.amazon.com",
            o.sku,
            o.title,
            o.quantity,
        )
        for o in ORDERS
    ]
    return Export(
        "Amazon, report of a seller's orders",
        {
            "interactions.txt": csv(
                "order-id\tpurchase-date\tbuyer-email\tsku\tproduct-name\tquantity-purchased", orders, "\t"
            )
        },
        {"user_id": "buyer-email", "item_id": "sku", "timestamp": "purchase-date"},
    )


def retail_rocket() -> Export:
    events = [
        (
            int(o.when.replace(tzinfo=dt.UTC).timestamp() * 1000),
            o.customer,
            "view" if n % 3 else "transaction",
            o.product + 300,
            "" if n % 3 else n,
        )
        for n, o in enumerate(ORDERS)
    ]
    return Export(
        "Retailrocket",
        {"interactions.csv": csv("timestamp,visitorid,event,itemid,transactionid", events, end="\n")},
        {"user_id": "visitorid", "item_id": "itemid", "timestamp": "timestamp"},
    )


def unnamed(flags: Mapping[str, str] | None = None) -> Export:
    rows = [(o.number, o.customer, o.sku, o.title, f"{o.when:%Y-%m-%d %H:%M}") for o in ORDERS]
    files = {"interactions.csv": csv("f1,f2,f3,f4,f5", rows)}
    if flags:
        return Export(
            "names that say nothing, with the columns named",
            files,
            {"user_id": "f2", "item_id": "f3", "timestamp": "f5"},
            flags=flags,
        )
    return Export(
        "names that say nothing",
        files,
        {"user_id": "f2", "item_id": "f3", "timestamp": "f5"},
        said=["'f2' is taken for user_id by a guess", "'f3' is taken for item_id by a guess (f4 depends on it)"],
    )


def without_header() -> Export:
    rows = [(o.customer, o.sku, f"{o.when:%Y-%m-%d}") for o in ORDERS]
    header = ",".join(map(str, rows[0]))
    return Export(
        "a dump without a header",
        {"interactions.csv": csv(header, rows[1:])},
        refused=["the first line holds data", "put a line of names before it, such as user_id,item_id,timestamp"],
    )


def raw_export() -> Export:
    items = [(sku, title) for sku, title, *_ in PRODUCTS] + [("71053", "Metal lantern, damaged")]
    return Export(
        "a raw export with several things wrong",
        {
            "interactions.csv": csv(
                "StockCode,InvoiceDate,CustomerID",
                [(o.sku, "2999-01-01" if not n else f"{o.when}", o.customer) for n, o in enumerate(ORDERS)],
            ),
            "items.csv": csv("StockCode,Description", items),
        },
        refused=[
            "interactions.csv: column 'InvoiceDate', line 2: expected a time in the past, found 2999-01-01 00:00:00",
            "items.csv: column 'StockCode', line 7: the id '71053' stood in line 3 already",
        ],
    )


EXPORTS = [
    excel_us(),
    excel_germany(),
    excel_germany("cp1252"),
    excel_france(),
    excel_spain(),
    excel_unicode_text(),
    excel_japan(),
    shopify(),
    woocommerce(),
    ga4(),
    bigquery(),
    spark_csv(),
    spark_parquet(),
    pandas_csv(),
    pandas_parquet(),
    online_retail(),
    olist(),
    book_crossing(),
    amazon_seller(),
    retail_rocket(),
    unnamed(),
    unnamed({"--user-column": "f2", "--item-column": "f3", "--time-column": "f5"}),
    without_header(),
    raw_export(),
]
