"use strict";

const $ = (selector, from = document) => from.querySelector(selector);
const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const picture = (shelf) => "#" + shelf.toLowerCase().replaceAll(" ", "-");

const shop = { products: new Map(), customer: null, basket: [], shelf: null, asked: 0 };

async function send(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function tell(text) {
  $("#news").textContent = text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => ($("#news").textContent = ""), 6000);
}

function card(product, recommendation) {
  const made = $("#card").content.cloneNode(true);
  $("use", made).setAttribute("href", picture(product.shelf));
  $(".name", made).textContent = product.name;
  $(".price", made).textContent = dollars.format(product.price);
  if (recommendation?.score !== undefined) {
    const percent = Math.max(1, Math.round(100 * recommendation.score));
    $(".known", made).hidden = !recommendation.bought_before;
    $(".score", made).hidden = false;
    $(".percent", made).textContent = `${percent}% likely`;
    $(".bar span", made).style.width = `${Math.min(100, 2 * percent)}%`;
  }
  const button = $(".add", made);
  const isIn = shop.basket.includes(product.product_id);
  button.dataset.product = product.product_id;
  button.textContent = isIn ? "In the basket" : "Add";
  button.setAttribute("aria-label", isIn ? `${product.name} is in the basket` : `Add ${product.name}`);
  button.disabled = isIn;
  return made;
}

function showShelf() {
  for (const button of document.querySelectorAll(".shelf-names button")) {
    button.setAttribute("aria-pressed", button.dataset.shelf === shop.shelf);
  }
  const products = [...shop.products.values()].filter((product) => product.shelf === shop.shelf);
  $("#shelves .cards").replaceChildren(...products.map((product) => card(product)));
}

function showBasket() {
  const lines = shop.basket.map((number) => {
    const product = shop.products.get(number);
    const line = $("#line").content.cloneNode(true);
    $(".name", line).textContent = product.name;
    $(".price", line).textContent = dollars.format(product.price);
    $(".remove", line).dataset.product = number;
    $(".remove", line).setAttribute("aria-label", `Remove ${product.name}`);
    return line;
  });
  $("#basket ul").replaceChildren(...lines);
  $("#total").textContent = dollars.format(shop.basket.reduce((sum, n) => sum + shop.products.get(n).price, 0));
  $("#order").disabled = shop.basket.length === 0;
}

/* For people who look: where an answer comes from, how old it is, and how long it took. */
function how(answer, basket) {
  const took = `${answer.milliseconds} ms.`;
  if (answer.origin === "lookup") {
    const nights = Math.max(1, Math.ceil((answer.age_seconds - 3600) / 86400)); // the day when clocks are put back has 25 hours
    const when = nights === 1 ? "last night" : `${nights} nights ago`;
    return `From ${when}: version ${answer.version}, ${age(answer.age_seconds)} old. Looked up in ${took}`;
  }
  if (answer.origin === "live") {
    const why = basket.length ? "By what is in your basket" : "There is nothing for you from last night";
    return `${why}: computed just now, in ${took}`;
  }
  return "Our bestsellers, because the recommender does not answer.";
}

function age(seconds) {
  const [count, unit] = seconds < 3600 ? [Math.round(seconds / 60), "minute"] : [Math.round(seconds / 3600), "hour"];
  return count === 1 ? `1 ${unit}` : `${count} ${unit}s`;
}

function showHow(text, origin) {
  const mark = $("#answered .origin");
  mark.textContent = origin;
  mark.className = `origin ${origin}`;
  mark.hidden = !["lookup", "live"].includes(origin);
  $("#answered .how").textContent = text;
}

/* Asked again whenever customer or basket changes; an answer that was overtaken by a newer question is dropped. */
async function recommend() {
  const asked = ++shop.asked;
  const visit = { customer_id: shop.customer, basket: shop.basket };
  let answer;
  try {
    answer = await send("/api/recommendations", visit);
  } catch (error) {
    if (asked === shop.asked) showHow(`No recommendations: ${error.message}`, "none");
    return;
  }
  if (asked !== shop.asked) return;
  const list = $("#recommended .cards");
  const position = [...list.children].findIndex((item) => item.contains(document.activeElement));
  const found = answer.products.filter((product) => shop.products.has(product.product_id));
  list.replaceChildren(...found.map((product) => card(shop.products.get(product.product_id), product)));
  if (position >= 0) $(".add", list.children[Math.min(position, found.length - 1)])?.focus();
  showHow(how(answer, visit.basket), answer.origin);
  list.dataset.asked = asked; // for tests: whose answer is shown
  return answer.origin;
}

function changeBasket(basket, news) {
  shop.basket = basket;
  showBasket();
  showShelf();
  if (news) tell(news);
  return recommend();
}

function add(number) {
  changeBasket([...shop.basket, number], `${shop.products.get(number).name}: in the basket.`);
}

function remove(number) {
  const position = shop.basket.indexOf(number);
  changeBasket(shop.basket.filter((n) => n !== number), `${shop.products.get(number).name}: removed.`);
  const buttons = document.querySelectorAll(".remove");
  (buttons[Math.min(position, buttons.length - 1)] ?? $("#basket-heading")).focus();
}

async function order() {
  try {
    await send("/api/orders", { customer_id: shop.customer, basket: shop.basket });
  } catch (error) {
    tell(`Not ordered: ${error.message}`);
    return;
  }
  const origin = await changeBasket([], "");
  const from = origin === "live" ? "already" : "with your next basket at once, and on this page from tomorrow";
  tell(`Thank you. What you ordered counts ${from}.`);
  $("#basket-heading").focus();
}

function numberOn(event, selector) {
  const button = event.target.closest(selector);
  return button && !button.disabled ? Number(button.dataset.product) : null;
}

async function open() {
  const { products, customers } = await send("/api/catalogue");
  for (const product of products) shop.products.set(product.product_id, product);

  for (const customer of customers) {
    const likes = customer.likes ? `customer ${customer.customer_id}, who likes ${customer.likes.toLowerCase()}` : "a new customer";
    $("#customer").add(new Option(likes, customer.customer_id));
  }
  $("#customer").addEventListener("change", () => {
    shop.customer = Number($("#customer").value);
    changeBasket([], "");
  });

  const shelves = [...new Set(products.map((product) => product.shelf))];
  for (const shelf of shelves) {
    const made = $("#shelf").content.cloneNode(true);
    $("use", made).setAttribute("href", picture(shelf));
    $("button", made).dataset.shelf = shelf;
    $("button", made).append(shelf);
    $(".shelf-names").append(made);
  }
  $(".shelf-names").addEventListener("click", (event) => {
    shop.shelf = event.target.closest("button")?.dataset.shelf ?? shop.shelf;
    showShelf();
  });
  document.addEventListener("click", (event) => {
    const added = numberOn(event, ".add");
    const removed = numberOn(event, ".remove");
    if (added !== null) add(added);
    if (removed !== null) remove(removed);
  });
  $("#order").addEventListener("click", order);

  shop.customer = Number($("#customer").value);
  shop.shelf = shelves[0];
  changeBasket([], "");
}

open();
