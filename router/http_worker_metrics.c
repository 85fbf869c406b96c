#include "router/http_worker_metrics.h"

#include "router/http_response.h"

static void on_page(void *context)
{
    struct rt_http_exchange *exchange = context;
    exchange->scrape.waits = false;
    rt_http_exchange_resume(exchange);
}

enum MHD_Result rt_http_worker_metrics_respond(struct rt_http_exchange *exchange)
{
    size_t size = 0;
    char *text = rt_service_scraped(exchange->all->service, &size);
    if (text == NULL)
        return MHD_NO;
    return rt_http_respond_text(exchange, text, size, "text/plain; version=0.0.4; charset=utf-8");
}

enum MHD_Result rt_http_worker_metrics(struct rt_http_exchange *exchange)
{
    if (exchange->connection->gone)
        return MHD_NO;
    exchange->scrape.asked = true;
    exchange->scrape.waiter = (struct rt_scrape_waiter){.fn = on_page, .context = exchange};
    if (rt_service_scrape(exchange->all->service, &exchange->scrape.waiter))
        return rt_http_worker_metrics_respond(exchange);
    exchange->scrape.waits = true;
    rt_http_exchange_suspend(exchange);
    return MHD_YES;
}

void rt_http_worker_metrics_cancel(struct rt_http_exchange *exchange)
{
    if (exchange->scrape.waits)
        rt_service_scrape_cancel(exchange->all->service, &exchange->scrape.waiter);
    exchange->scrape.waits = false;
}
